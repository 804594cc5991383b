"""Egocentric synthetic data: first-person scenes with questions whose answers can be read from the pixels.

scenes     what is in a scene, drawn at random: places, objects, hands, events over time
drawing    a scene -> a 224 x 224 image (with pen, places, things)
questions  a scene -> one question and its one exact answer, in seven categories
captions   a scene -> a free description, worded differently every time (for pre-training)
writing    a directory of JSONL and PNG files
"""
