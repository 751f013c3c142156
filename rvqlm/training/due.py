"""When to log, validate, sample, save and archive."""

from __future__ import annotations

from rvqlm.training.config import TrainerConfig


def what_is_due(
    config: TrainerConfig,
    step: int,
    elapsed: float,
    epoch_ended: int | None,
    finished: bool,
    stopping: bool,
    since: dict[str, float],
) -> set[str]:
    """Of ``log``, ``valid``, ``sample``, ``save`` and ``archive`` what is to be done after a step.

    :param step: steps done.
    :param elapsed: seconds of training.
    :param epoch_ended: the epoch that ended in this step, if one did.
    :param stopping: a signal asked for the end.
    :param since: ``valid``, ``sample``, ``save``: value of `elapsed` when it was done last.
    """
    log, save, ended = config.log, config.save, epoch_ended is not None

    def by_steps(every: int) -> bool:
        return bool(every) and step % every == 0

    def by_minutes(every: float, name: str) -> bool:
        return bool(every) and elapsed - since[name] >= 60 * every

    def by_epochs(every: int) -> bool:
        return bool(every) and ended and (epoch_ended + 1) % every == 0

    valid = by_steps(log.valid_every_steps) or by_minutes(log.valid_every_minutes, "valid")
    if not log.valid_every_steps and not log.valid_every_minutes:
        valid = ended
    sample = (
        by_steps(log.sample_every_steps)
        or by_epochs(log.sample_every_epochs)
        or by_minutes(log.sample_every_minutes, "sample")
    )
    archive = by_steps(save.archive_every_steps) or by_epochs(save.archive_every)
    saved = by_steps(save.save_every_steps) or by_minutes(save.save_every_minutes, "save")
    due = {
        "log": ended or finished or by_steps(log.log_every_steps),
        "valid": valid or finished,
        "sample": sample or (finished and log.samples),
        "save": finished or stopping or archive or saved,
        "archive": archive,
    }
    return {name for name, now in due.items() if now}
