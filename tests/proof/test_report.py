"""The page that is made of a journal."""

from pathlib import Path

from eco_fast.proof.journal import open_journal
from eco_fast.proof.report import write_report


def test_figures_of_a_kind_stand_in_one_table(tmp_path: Path) -> None:
    head = {"t": 1.0, "check": "profile", "device": "cpu", "attempt": 1}
    with open_journal(tmp_path, resume=False) as journal:
        journal.add(**head, begin=120)
        for case in ("first", "second"):
            journal.add(**head, case=case, benchmark="profile", launches=23)
            journal.add(**head, case=f"{case}: conv", benchmark="kernels", us=5.5)
        journal.add(**head, case="kernels", hits=2, misses=1)
        journal.add(**head, end="passed", compared=2, faults=[], detail="")
        page = write_report(journal, tmp_path).read_text()
    parts = page.split("## profile (cpu): passed\n\n")[1].split("\n\n")
    assert parts.pop(0) == "QUICK: TINY PROBLEMS, NOT MEASUREMENTS."
    assert parts[0] == "| case | hits | misses |\n|---|---|---|\n| kernels | 2 | 1 |"  # it has no heading
    assert parts[1:3] == ["### profile", "| case | launches |\n|---|---|\n| first | 23 |\n| second | 23 |"]
    assert parts[3] == "### kernels" and parts[4].startswith("| case | time |")
    assert parts[4].count("conv | 5.50 us") == 2
