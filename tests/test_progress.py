"""The part that one run has in the bar of many."""

from stemformer.progress import Progress, Silent, SubProgress


class Kept(Silent):
    """A progress that keeps what it is calls."""

    def __init__(self):
        self.calls = []

    def start(self, what, *, total=None, unit=""):
        self.calls.append(("start", what))

    def advance(self, amount, note=""):
        self.calls.append((amount, note))

    def say(self, line):
        self.calls.append(line)


def test_a_part_is_a_progress():
    assert isinstance(SubProgress(Silent(), "a", share=1), Progress)


def test_training_moves_the_shared_bar_by_its_share():
    outer = Kept()
    part = SubProgress(outer, "run 1", share=50)
    part.start("opening the data")
    part.advance(3)
    part.start("training", total=200, unit="steps")
    part.advance(20, "loss 2.0")
    part.advance(180)
    part.finish()
    assert outer.calls == [(5.0, "run 1: loss 2.0"), (45.0, "run 1")]


def test_of_what_is_said_only_that_it_stopped_is_passed_on():
    outer = Kept()
    part = SubProgress(outer, "run 1", share=50)
    part.say("step 10: held-out loss 3.0")
    part.say("Stopped after step 10.")
    part.say("Stopped after step 12 of 40. Checkpoint saved; continue with --resume.")
    assert outer.calls == [
        "run 1: Stopped after step 10. Finished runs are kept; continue with --resume.",
        "run 1: Stopped after step 12 of 40. Checkpoint saved; continue with --resume.",
    ]
