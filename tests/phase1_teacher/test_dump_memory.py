"""The memory of a dump grows by tables of keys alone; `benchmarks.dump_memory` shows the same at half a million samples."""

import tracemalloc

from benchmarks.dump_memory import CountingTeacher
from phase1_teacher.dump import dump, prepare_dump
from phase1_teacher.summary import summary_text


def text_rows(count):
    rows = []
    for index in range(count):
        question, answer = f"question {index} about the lamp", "near the small door"
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append({"id": f"s{index}", "messages": messages, "images": []})
    return rows


def test_the_memory_of_a_dump_grows_by_tables_of_keys_alone(workshop):
    peaks = []
    for count in (200, 200, 1600):  # the first one warms caches
        recipe = workshop.load(text_rows(count), cache={"path": f"cache{len(peaks)}", "unit_positions": 256})
        teacher = CountingTeacher()
        tracemalloc.start()
        summary = dump(prepare_dump(recipe, progress=False), model=teacher, progress=False)
        assert f"{count:,} samples" in summary_text(recipe.cache_location, summary)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert summary.samples == teacher.rows == count
        assert summary.units > 3
    _, small, large = peaks
    # keys, places and positions in arrays, ids in a dictionary, the JSON of one plan: 400 bytes for each sample at most
    assert large < small + 400 * (1600 - 200)
