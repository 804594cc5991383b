"""Words of first-person life, beyond those of the synthetic questions: they give the miniature tokenizer its vocabulary."""

WORDS = """
apron armchair arrange asparagus balcony bandage basin basket bathrobe bathtub battery beaker bedroom bicycle bench blanket
blender blinds bolt bookshelf boots bowl box bread breakfast bridge broom bucket button cabinet cable camera candle
canister cardboard carpet carrot ceiling celery chair charger cheese chisel chop chopping cinnamon clamp clean cleaner
climb closet cloth clothes coaster coffee comb computer cook cooker corridor countertop cover cream crosswalk cucumber
cupboard curtain cushion cutlery dessert detergent dinner dishwasher document door doorway drain drawer drawing dress
drill drink driver dryer dustpan earphones elbow elevator empty envelope eraser fabric faucet feather fence fetch
finger flashlight flour flower folder football forearm fork freezer fridge fruit funnel furniture garage garlic garment
ginger glasses gloves glue grater grind guitar hallway handle hanger headphones heater helmet herbs hinge honey hose
household insert install iron jacket jar juice kettle keyboard kneading knife knob ladder ladle laptop laundry leather
lemon letter lever lid light lighter lock lotion lunch machine magazine magnet marker mattress measure medicine melon
metal microwave milk mirror mixer mixture monitor mop mouse mushroom nail napkin needle noodles notebook onion open oven
package paintbrush painting pajamas pan paper parsley pasta pastry pavement pebble pedal peel peeler pencil pepper
phone piano pillow pipe pitcher plank plaster plastic plate plier plug pocket potato pottery powder press printer push
rack radio raincoat razor recipe refrigerator remote remove repair rice rinse roll rope rug ruler salad salt sandal
sandwich sauce saucepan saw scale scarf scissors scoop scrape screen screw screwdriver scrub seedling sewing shampoo
sharpen shaver sheet shirt shoe shoelace shovel shower sidewalk sieve sink skillet sleeve slice slipper soap sock sofa
soil spatula sponge spray squeeze stairs stapler steering stir stool strainer straw street string suitcase sugar
sweater sweep switch table tablet tape teapot telephone television thermometer thread throw tighten tile timer toast
toaster toilet tomato tongs toolbox toothbrush toothpaste towel toy tray treadmill trousers trowel tweezers umbrella
unfold unlock unscrew vacuum vase vegetable vinegar wallet wardrobe wash watch water watering wheel wheelbarrow whisk
window wipe wire wooden workbench wrap wrench wrist yoghurt zipper
above across after again against along already always another around away because before behind below beneath beside
between beyond both bring carefully carry close closer come corner down during each edge either every far first follow
forward from further gently give grab half here high hold how inside instead into keep large later less lift little
long look lower make many middle more most move near nearby nearest never next nothing now often only onto opposite
other outside over part past perhaps person place pull put quickly quite rather reach really second several short side
since slowly small something somewhere soon step still straight such take their them then third through together toward
towards turn twice under until upper usually walk wearer what when whether which while whole without work wrong yesterday
"""
