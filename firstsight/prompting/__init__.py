"""From a sample to model inputs: the model's own chat template and processor, and where the answers are.

prompter = load_prompter(directory, section, recipe.data)     # firstsight.pair
encoded = prompter.encode(sample)
inputs, (rows, columns) = collate([encoded], prompter.pad_id), answer_index([encoded])

Both phases use this package, so the teacher's rows and the student's rows are found the same way. The row of a token is at
the position before it: for an answer of P tokens (end of turn included) after `p` tokens the answer positions are
p - 1 ... p + P - 2.
"""

from firstsight.prompting.encoded import Encoded, answer_index, collate, collate_images
from firstsight.prompting.prompter import Prompter

__all__ = ["Encoded", "Prompter", "answer_index", "collate", "collate_images"]
