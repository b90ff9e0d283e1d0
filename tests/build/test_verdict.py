"""A verdict in one line."""

from __future__ import annotations

from voxtile_build.certificate.verdict import Verdict

METRICS = {"max_abs_error": 1.5e-7, "dice_min": 1.0}


def test_an_entry_that_holds_says_what_was_measured_and_what_was_certified() -> None:
    assert Verdict("tiny", (), METRICS).as_line() == "tiny: holds: max_abs_error 1.5e-07, dice_min 1"
    known = Verdict("tiny", (), METRICS, certified={"dice_min": 0.9975})
    assert known.as_line() == "tiny: holds: max_abs_error 1.5e-07, dice_min 1 (certified 0.9975)"
    assert known.holds


def test_where_it_ran_and_what_was_not_seen_come_last() -> None:
    verdict = Verdict("tiny", (), {"dice_min": 1.0}, {}, ("scar", "lesion"), "gpu", "NVIDIA H200")
    assert verdict.as_line() == "tiny: holds: dice_min 1 (on NVIDIA H200); labels hardly seen: scar, lesion"


def test_where_nothing_was_measured_it_holds_and_no_more() -> None:
    assert Verdict("tiny", ()).as_line() == "tiny: holds"


def test_an_entry_that_does_not_hold_says_every_fault_and_no_figures() -> None:
    verdict = Verdict("tiny", ("model.onnx: changed", "no certificate"), METRICS, METRICS, ("scar",), "gpu", "GPU")
    assert not verdict.holds
    assert verdict.as_line() == "tiny: does not hold: model.onnx: changed; no certificate"
