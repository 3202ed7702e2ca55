"""Moments at which a run is hit: each waits for it, watching the workdir from outside.

A moment is a function of (job, random numbers) that returns the signals to send, with
the seconds before each; it ends early where the run does.
"""

import signal
import time

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT


def _watch(job, seen, seconds=300):
    """Waits until something is seen in the workdir, or the run is over."""
    end = time.monotonic() + seconds
    while job.running() and time.monotonic() < end:
        if seen():
            return
        time.sleep(0.001)


def at_any_time(job, random):
    """Killed anywhere from its first instruction to beyond its end."""
    return [(random.uniform(0, 1.1 * job.usual_seconds), KILL)]


def in_a_save(job, random):
    """Killed while a checkpoint is being written under its temporary name."""
    _skip(job, random)
    _watch(job, job.saving)
    return [(random.uniform(0, 0.15), KILL)]


def in_a_rotation(job, random):
    """Killed as a checkpoint gets its name and the oldest goes."""
    _skip(job, random)
    _next_save(job)
    return [(random.uniform(0, 0.05), KILL)]


def in_an_evaluation(job, random):
    """Killed between a checkpoint and what is due at its step."""
    _skip(job, random)
    size = job.log_size()
    _watch(job, lambda: job.log_size() != size)
    return [(random.uniform(0, 0.3), KILL)]


def asked_in_an_evaluation(job, random):
    """Asked to stop between a checkpoint and what is due at its step."""
    [(seconds, _)] = in_an_evaluation(job, random)
    return [(seconds, random.choice((TERM, INT)))]


def asked(job, random):
    """Asked to stop by a scheduler or by Ctrl-C, at any time."""
    # Python itself answers Ctrl-C at its start with a traceback.
    share = random.uniform(0.3, 1.1)
    return [(share * job.usual_seconds, random.choice((TERM, INT)))]


def asked_twice(job, random):
    """Asked to stop, and again while it saves."""
    _skip(job, random)
    _watch(job, job.saving)
    return [(0, TERM), (random.uniform(0, 0.3), INT), (random.uniform(0, 0.3), TERM)]


def asked_and_killed(job, random):
    """Asked to stop, and killed when the patience of the machine is at its end."""
    _skip(job, random)
    _watch(job, job.saving)
    return [(0, TERM), (random.uniform(0, 1), KILL)]


def _skip(job, random):
    """Lets a number of saves go by, so not all hits are on the first."""
    for _ in range(random.randrange(3)):
        _next_save(job)


def _next_save(job):
    """Waits until a checkpoint gets its name, or loses it."""
    before = job.steps()
    _watch(job, lambda: job.steps() != before)


MOMENTS = {
    function.__name__: function
    for function in (
        at_any_time,
        in_a_save,
        in_a_rotation,
        in_an_evaluation,
        asked_in_an_evaluation,
        asked,
        asked_twice,
        asked_and_killed,
    )
}
