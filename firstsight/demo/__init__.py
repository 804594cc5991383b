"""What can be run without data or models of your own.

synth      first-person scenes with questions, drawn at random
miniature  a small teacher trained on them, and a smaller student base
run        the demo: distils the teacher into the student
"""
