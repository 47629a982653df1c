"""`sfumato tell RUN WORD`: ask a run that goes on for something, without signals."""

from collections.abc import Sequence
from pathlib import Path

from sfumato.cli.options.flags import make_parser, parse_flags
from sfumato.cli.product import show
from sfumato.errors import UserError

_WORDS = {
    "save": "saves the weights, and a state if it saves states",
    "sample": "makes its previews",
    "stop": "saves weights and state, and ends",
}
"""What a run does after the step that is under way."""


def main(argv: Sequence[str]) -> int:
    """Write the control file of a run; return the exit status.

    Raises:
        UserError: there is no such run, or it does not go on any more.
    """
    parser = make_parser((), "sfumato tell", "Ask a run that goes on to save, to make previews or to stop.")
    parser.add_argument("run", metavar="RUN", help="its OUTPUT_DIR/OUTPUT_NAME, or any file that it wrote")
    parser.add_argument("word", metavar="save|sample|stop", choices=list(_WORDS), help="what to do")
    given = parse_flags(parser, argv)
    return _tell(Path(given["run"]), given["word"])


def _tell(run: Path, word: str) -> int:
    from sfumato.training.core.commands import Command
    from sfumato.training.core.control import write_command
    from sfumato.training.core.record import read_record
    from sfumato.training.core.run_files import control_for, record_for

    path = record_for(run)
    record = read_record(path)
    if record.ended is not None:
        raise UserError(f"{run} does not run: it {record.ended} after step {record.step}")
    if record.process.is_gone:
        raise UserError(
            f"{run} does not run: its process {record.process.number} ended without a word; "
            "what it had saved is there"
        )
    write_command(control_for(path), Command(word))
    show(f"after the step that is under way, {run} {_WORDS[word]}")
    return 0
