"""A clock for training loops under a budget of time."""


class FakeClock:
    """Clock of the training loop that only a run itself advances: by a hundredth of a second each time it is read."""

    now = 0.0

    def perf_counter(self):
        self.now += 0.01
        return self.now
