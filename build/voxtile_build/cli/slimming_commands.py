"""The commands that make smaller networks. Each is one call of the library."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxtile.cli.console import SIGNAL_EXIT, Ended, signals_interrupt
from voxtile_build.cli.console import Steps, announce, echo, exit_code
from voxtile_build.cli.options import (
    CHECKPOINT,
    Checkpoint,
    Configuration,
    Folds,
    Quiet,
    TrainerKeepsNetwork,
    split,
)
from voxtile_build.slimming.plan import HELD_OUT, HOURS, POOL_GIB

if TYPE_CHECKING:
    from voxtile_build.slimming.distil import Distilled

Width = Annotated[
    float | None,
    typer.Option("--width", metavar="W", help="Share of the teacher's channels that is kept, such as 0.5."),
]


def distil(
    teacher: Annotated[
        Path,
        typer.Argument(metavar="TEACHER", help="A spec with its weights, or a trained nnU-Net folder or its zip file."),
    ],
    scans: Annotated[Path, typer.Option("--scans", metavar="DIR", help="Scans without labels; named as for batch.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for weights, spec and report.")],
    width: Width = None,
    student: Annotated[
        Path | None,
        typer.Option("--student", metavar="S.toml", help="In place of --width: the student's spec, without weights."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="N", help="The student's name. Left out: its spec's, or TEACHER-w50 and so on."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Steps of training.")] = None,
    hours: Annotated[
        float | None,
        typer.Option(
            "--hours",
            metavar="H",
            help=f"In place of --steps: hours of labelling and training, over all restarts. Both left out: {HOURS:g}.",
        ),
    ] = None,
    held_out: Annotated[
        float, typer.Option("--held-out", metavar="SHARE", help="Scans that the student is judged on, and never sees.")
    ] = HELD_OUT,
    one_scan: Annotated[
        bool,
        typer.Option("--one-scan", help="DIR holds one scan alone: train on a part of it, judge on the rest."),
    ] = False,
    any_modality: Annotated[
        bool, typer.Option("--any-modality", help="Take scans whose values are far from what the teacher was made for.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of everything that is drawn.")] = 0,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", help="Patches in a step. Left out: 2 in 3D, 16 in 2D.")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", metavar="R", help="The highest, of AdamW. Left out: what suits the network."),
    ] = None,
    pool: Annotated[
        float, typer.Option("--pool", metavar="GIB", help="Most disk for labelled patches, while it runs.")
    ] = POOL_GIB,
    min_dice: Annotated[
        float | None,
        typer.Option("--min-dice", metavar="D", help="Least Dice of any label to the teacher, to be published."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", help="Of the CPU, for training. Left out: all.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was interrupted; without one, begin.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier run left in --output.")
    ] = False,
    repository: Annotated[
        Path | None, typer.Option("--repository", metavar="DIR", help="Publish the student in this model repository.")
    ] = None,
    folds: Folds = None,
    checkpoint: Checkpoint = CHECKPOINT,
    configuration: Configuration = None,
    trainer_keeps_network: TrainerKeepsNetwork = False,
    quiet: Quiet = False,
) -> None:
    """Train a small student on what a large teacher answers to scans without labels."""
    from voxtile_build.slimming.distil import distil as make_student
    from voxtile_build.slimming.plan import Options

    asked = Options(
        teacher=teacher,
        scans=scans,
        output=output,
        width=width,
        student=student,
        name=name,
        steps=steps,
        hours=hours,
        held_out=held_out,
        one_scan=one_scan,
        any_modality=any_modality,
        seed=seed,
        batch=batch,
        learning_rate=learning_rate,
        pool_gib=pool,
        min_dice=min_dice,
        threads=threads,
        resume=resume,
        overwrite=overwrite,
        repository=repository,
        folds=split(folds),
        checkpoint=checkpoint,
        configuration=configuration,
        trainer_keeps_network=trainer_keeps_network,
    )

    def told(line: str) -> None:
        echo(line, err=True)

    def informed(line: str) -> None:
        if not quiet:
            told(line)

    try:
        with signals_interrupt():
            made = make_student(asked, lambda named: Steps(named, quiet=quiet), told, informed)
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Ended) else signal.SIGINT
        echo("voxtile-build: interrupted; the same command with --resume goes on", err=True)
        raise typer.Exit(SIGNAL_EXIT + number) from None
    for line in agreement_lines(made):
        echo(line)
    if made.refused is not None:
        raise made.refused
    if made.published is None or repository is None:
        echo(f"next: voxtile-build spec {made.outcome.files['spec']} --repository model_repository")
        return
    announce(made.published, repository)
    raise typer.Exit(exit_code([made.published]))


def agreement_lines(made: Distilled) -> Iterator[str]:
    """How far the student agrees with its teacher, what it costs, and where it is."""
    name, agreement, teacher = made.made.student.name, made.made.agreement, made.made.teacher
    count = len(agreement.scans)
    where = "a block of the one scan" if agreement.block else f"{count} held-out scan{'' if count == 1 else 's'}"
    for label, one in agreement.labels.items():
        if one.dice_mean is not None and one.dice_min is not None:
            lowest = f", at least {one.dice_min:.4f}" if count > 1 else ""
            yield f"{name}: {label}: Dice to {teacher.name} {one.dice_mean:.4f}{lowest}, on {where}"
    ours, theirs = made.made.cost, teacher.cost
    ratio = theirs.parameters / max(ours.parameters, 1)
    yield f"{name}: {ours.parameters:,} parameters, {teacher.name} {theirs.parameters:,} ({ratio:.1f}×)"
    if ours.gflop and theirs.gflop:
        ratio = theirs.gflop / ours.gflop
        yield f"{name}: a tile takes {ours.gflop:.3g} GFLOP, {teacher.name} {theirs.gflop:.3g} ({ratio:.1f}×)"
    folder = made.outcome.files["spec"].parent
    yield f"{name}: wrote {', '.join(path.name for path in made.outcome.files.values())} in {folder}"
