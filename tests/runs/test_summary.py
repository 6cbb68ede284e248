"""What a run found, in sentences."""

from tests.runs.made import record, result, score
from tl_pipeline.runs import summary
from tl_pipeline.runs.records import Registered, ResultMember
from tl_pipeline.runs.summary import Sentence


def test_what_the_best_of_many_by_test_is_worth():
    """Twenty equal ones with a standard error of 5.1 points: their best is 9.5 high."""
    few, many = ([f"head {n} on network" for n in range(k)] for k in (19, 20))
    assert not [s for s in summary.of_run(record("1", tested=few)) if "19" in s.text]
    (said,) = (s for s in summary.of_run(record("1", tested=many)) if "20" in s.text)
    assert said.tone == "warning"
    assert said.text.startswith(
        "20 candidates of all runs were scored on the test images: whoever takes the "
        "best of them by test sees it up to 9.5 points too high."
    )


def test_of_a_run():
    members = [
        ResultMember(evaluation="d" * 32, encoder="a", head="lda", times=2),
        ResultMember(evaluation="e" * 32, encoder="b", head="mlp", times=1),
    ]
    registered = Registered(
        name="photos",
        version=3,
        model="c" * 32,
        champion=False,
        reason="data are missing",
        comparable=False,
    )
    found = record(
        "1",
        results=[result("b" * 32, test=score(0.7), members=members)],
        registered=registered,
    )
    assert list(summary.of_run(found)) == [
        Sentence(
            "photos: test accuracy 70.0 % [60.0, 80.0] on 10 images, with "
            "logistic(C=1.0) on lenet5/c5 LETTERS",
            "headline",
        ),
        Sentence("averaged: 2 x lda on a; 1 x mlp on b"),
        Sentence(
            "gain by transfer: +25.0 points [+15.0, +35.0] over the same network "
            "untrained"
        ),
        Sentence(
            "1 inputs refused, 2 duplicate files: `tl sql 'FROM quarantine'`, "
            "`tl sql 'FROM duplicates'`"
        ),
        Sentence(
            "model photos version 3, not champion: data are missing", tone="alarm"
        ),
    ]
