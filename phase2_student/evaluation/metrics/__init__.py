"""How right, how sure and how far from the teacher answers are.

answer_metrics  one answer against its truth;  choices  the option that it means;  text_forms  the forms that are compared
scores          means over samples and groups of them
intervals       of shares, of means and of paired differences
distance        KL to the teacher, from the cache
"""
