import signal
import threading

import pytest

from stemformer.cli.exit_codes import Terminated, signals_raise
from stemformer.training.interrupts import GracefulInterrupt

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def same_handlers_after():
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_no_signal_requests_nothing():
    with GracefulInterrupt() as stop:
        assert not stop.is_requested


def test_first_interrupt_is_only_noted():
    with GracefulInterrupt() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_requested


def test_second_interrupt_acts_at_once():
    with pytest.raises(KeyboardInterrupt), GracefulInterrupt():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_noted_interrupt_acts_between_steps():
    with pytest.raises(KeyboardInterrupt), GracefulInterrupt() as stop:
        signal.raise_signal(signal.SIGINT)
        stop.raise_interrupt()


def test_noted_sigterm_acts_as_sigterm():
    with signals_raise(), pytest.raises(Terminated), GracefulInterrupt() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_requested
        stop.raise_interrupt()


def test_handlers_come_back_after_an_error():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ValueError, match="ours"), GracefulInterrupt():
        raise ValueError("ours")
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_other_thread_trains_without_handlers():
    outcome = []

    def work():
        with GracefulInterrupt() as stop:
            outcome.append(stop.is_requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == [False]


def test_second_sigterm_is_ignored_until_the_step_is_saved():
    with signals_raise(), pytest.raises(Terminated), GracefulInterrupt() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_requested
        stop.raise_interrupt()
