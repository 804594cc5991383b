"""A scene -> a 224 x 224 image, one 56-pixel cell per place of the grid.

Every drawing is made once and cached; an image is put together from them.
"""

from PIL import Image

from firstsight.demo.synth.pen import CELL
from firstsight.demo.synth.places import SIZE, backdrop, landmark_sprite
from firstsight.demo.synth.scenes import HAND_ROW, JITTER, Hand, Scene
from firstsight.demo.synth.things import hand_sprite, held_sprite, item_sprite, left_hand_sprite


def render(scene: Scene) -> Image.Image:
    """The image of a scene: RGB, 224 x 224."""
    background = backdrop(scene.environment)
    picture = background.crop((scene.look.offset, 0, scene.look.offset + SIZE, SIZE))
    landmark = landmark_sprite(scene.landmark)
    picture.paste(landmark, (scene.landmark_column * CELL, 0), landmark)
    for placed in scene.placed:
        sprite = item_sprite(placed.item)
        picture.paste(sprite, (placed.column * CELL + placed.shift[0], placed.row * CELL + placed.shift[1]), sprite)
    for hand in (scene.left, scene.right):
        _paste_hand(picture, scene, hand)
    light = scene.look.light / 100
    return picture.point([min(255, round(value * light)) for value in range(256)] * 3)


def _paste_hand(picture: Image.Image, scene: Scene, hand: Hand) -> None:
    x = hand.column * CELL + hand.shift[0]
    # Only downwards and never by the whole jitter: the thing in the hand must stay in its row.
    y = HAND_ROW * CELL + abs(hand.shift[1]) // 2
    if hand.item is not None:
        held = held_sprite(hand.item, hand.action == "use")
        picture.paste(held, (x + JITTER + 1, y), held)
    sprite_of = hand_sprite if hand.side == "right" else left_hand_sprite
    hand_image = sprite_of(hand.action if hand.item is None else "hold", scene.look.skin, scene.look.sleeve)
    picture.paste(hand_image, (x, y), hand_image)
