"""Code, commands, tables and links of README and of the pages in docs/."""

from __future__ import annotations

import re
import runpy
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import isanet_zoo
from isanet_zoo.commands.main import COMMANDS, MAINTAIN, main, make_parser
from isanet_zoo.manifest.lookup import load_manifest

ROOT = Path(isanet_zoo.__file__).parents[1]

if not (ROOT / "docs").is_dir():
    pytest.skip("not a checkout", allow_module_level=True)

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
         for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}  # fmt: skip
NOT_RUN = "<!-- not run"  # stands before a block that needs a package or data set; says which


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    page: str
    language: str
    code: str
    run: bool

    def __str__(self) -> str:
        return f"{self.page}: {self.code.strip().splitlines()[-1][:40]}"


BLOCKS = [
    Block(page, language, code, not before.startswith(NOT_RUN))
    for page, text in PAGES.items()
    for before, language, code in re.findall(
        r"(?:^([^\n]*)\n)?^```(python|bash|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    )
]
PYTHON = [
    block
    for block in BLOCKS
    if block.language == "python" and block.run and block.page != "docs/interoperate.md"
]  # test_interoperate.py has that page
COMMANDS_SHOWN = sorted(
    {
        re.split(r" (?:\||>>?) ", command)[0]
        for block in BLOCKS
        for command in re.findall(r"\bisanet-zoo (\w[^\n]*)", block.code.replace("\\\n", " "))
        if block.language != "python"
    }
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_inputs: None) -> Path:
    """A working folder with a smaller street.jpg, and the files that pages show by `cat`."""
    (tmp_path / "examples").mkdir()
    with Image.open(ROOT / "examples" / "street.jpg") as photo:
        photo.resize((450, 337)).save(tmp_path / "examples" / "street.jpg")
    for text in PAGES.values():
        for name, content in re.findall(r"^\$ cat (\S+)\n(.*)$", text, re.MULTILINE):
            (tmp_path / name).write_text(content, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_block_runs_offline_and_prints(
    block: Block, capsys: pytest.CaptureFixture[str]
) -> None:
    code = block.code.replace('load(".",', f"load({str(ROOT)!r},")
    exec(compile(code, block.page, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip(), "print something"


@pytest.mark.parametrize("command", COMMANDS_SHOWN)
def test_command_is_understood(command: str) -> None:
    make_parser().parse_args(shlex.split(re.sub(r"\$\w+", "0", command.partition(" # ")[0])))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "command", [c for c in COMMANDS_SHOWN if "examples/street.jpg" in c and "onnx" not in c]
)
def test_command_runs_offline(command: str) -> None:
    assert main(shlex.split(command)) == 0


def test_blocks_that_are_not_run_are_the_marked_ones() -> None:
    assert len(PYTHON) > 10
    pages = {block.page for block in BLOCKS if not block.run}
    assert pages == {"docs/engines.md", "docs/fine_tune.md"}


def test_table_of_models_is_that_of_the_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--markdown"]) == 0
    table = capsys.readouterr().out
    assert table in PAGES["docs/models.md"], "put the output of `isanet-zoo list --markdown` there"
    assert len(table.splitlines()) == 2 + len(load_manifest())


def test_page_of_commands_is_that_of_the_parser() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "command_line.py"))["render"]()
    assert page == PAGES["docs/command_line.md"], "run `python docs/command_line.py`"
    assert all(f"## {name}\n" in page for name in COMMANDS | MAINTAIN)


def test_reference_has_every_public_name() -> None:
    documented = set(re.findall(r"^\.\. auto\w+:: (\w+)$", PAGES["docs/api.md"], re.MULTILINE))
    assert documented == set(isanet_zoo.__all__) - {"__version__"}


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_exist(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_index_lists_every_page() -> None:
    pages = {Path(page).stem for page in PAGES if page.startswith("docs/")} - {"index"}
    listed = re.findall(r"^(\w+)$", PAGES["docs/index.md"], re.MULTILINE)
    assert sorted(listed) == sorted(pages)


def test_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 160


def test_readme_has_the_command_that_continuous_integration_runs() -> None:
    assert "<!-- tests -->\n```bash\npip install -e '.[dev]' && pytest\n```" in PAGES["README.md"]
    assert "/<!-- tests -->/" in (ROOT / ".ci" / "run").read_text("utf-8")
