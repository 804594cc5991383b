"""Teacher and students side by side on held-out samples.

evaluate    measures every model: answers, speed, memory, distance to the teacher
usable      the samples that all models can take
candidates  the models to measure;  loading  loads a model;  answers  a model's answers as records
metrics     how right an answer is;  measure  time, memory, energy;  goals  pass or fail
results     what an evaluation holds: one declaration of its JSON
summary     an evaluation as text;  files  written and read
ask         one question to a student
"""
