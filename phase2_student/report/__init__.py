"""The report of a distillation as one HTML page.

charts     SVG by matplotlib, in the colours of the page
figures    the data of charts and tables, computed from the records
costs      time and teacher passes of the dump and the runs
gallery    held-out images with every model's answer
page       all of it through templates/report.html
run_row    one row per run: settings, how far it got, how near its student came to the teacher
run_groups the runs of one objective as one row, and the best objective
run_table  runs and groups side by side as text or JSON, for `fs-student compare`
run_plot   their validation curves as a PNG
"""
