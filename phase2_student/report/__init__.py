"""The report of a distillation as one HTML page.

charts     SVG by matplotlib, in the colours of the page
figures    the data of charts and tables, computed from the records
costs      time and teacher passes of the dump and the runs
gallery    held-out images with every model's answer
page       all of it, rendered with templates/report.html
run_table  runs side by side as text or JSON, for `fs-student compare`
run_plot   their validation curves as a PNG
"""
