"""What goes in (:class:`TaskContext`), and the nouns of asking a model and of its answer."""

from __future__ import annotations

from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from necrocode.agent_runner import _names
from necrocode.agent_runner._invisible import visible
from necrocode.agent_runner._strict import JsonObject, StrictModel, Value, Writable, read_yaml_mapping
from necrocode.agent_runner._text import shown
from necrocode.agent_runner.errors import RunnerError, TaskContextValidationError
from necrocode.agent_runner.fencing import HandedLease

DEFAULT_TASK_TIMEOUT_SECONDS = 1800.0
_LONGEST_MODEL_NAME = 200
_LONGEST_EXPLANATION = 4000


def _without_placeholders(value: object) -> object:
    """Lets ``[...]``, as the migration guide's example is written, stand for "none yet"."""
    if value is None or isinstance(value, str):
        raise ValueError("must be a list of texts")
    if isinstance(value, (list, tuple)):
        return [item for item in value if not isinstance(item, EllipsisType)]
    return value


if TYPE_CHECKING:  # for type checkers: a list is as welcome as the tuple that it becomes
    from collections.abc import Sequence

    TextList = Sequence[str]
else:
    TextList = Annotated[tuple[str, ...], BeforeValidator(_without_placeholders)]


# What models say of themselves ends up in results, in logs and on terminals.
ModelName = Annotated[str, AfterValidator(lambda text: shown(text, _LONGEST_MODEL_NAME))]
Explanation = Annotated[str, AfterValidator(lambda text: shown(text, _LONGEST_EXPLANATION))]


def checked_related_files(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Paths of a task or playbook that lie inside a repository."""
    return tuple(_names.check_path_inside(path) for path in paths)


def checked_commands(commands: tuple[str, ...]) -> tuple[str, ...]:
    """Commands of a task or playbook that a shell can run."""
    if any(not command.strip() or "\0" in command for command in commands):
        raise ValueError("each must be a shell command, not an empty text")
    return commands


class TaskContext(StrictModel):
    """One task for :meth:`RunnerOrchestrator.run`; validated whole before anything is touched.

    Raises :class:`TaskContextValidationError` naming every wrong field.
    """

    error_type: ClassVar[type[RunnerError]] = TaskContextValidationError
    what: ClassVar[str] = "task"
    secret_fields: ClassVar[frozenset[str]] = frozenset({"repo_url", "lease"})  # the URL may hold a password

    task_id: str
    """The task's id, unique within its spec: letters, digits, ``.``, ``_``, ``-``; at most 128."""
    spec_name: str
    """The spec (task set) it belongs to: letters and digits of any script, ``.``, ``_``, ``-``; at most 128."""
    title: str = Field(min_length=1, max_length=500)
    """One line; becomes the commit's subject and, where no branch is named, part of the branch's name."""
    description: str = Field(max_length=200_000)
    """What to do, for the model to read."""
    acceptance_criteria: TextList = ()
    """Statements that must be true when the task is done, for the model to read."""
    dependencies: TextList = ()
    """Ids of the tasks of the same spec that come before this one. Recorded in the registry."""
    required_skill: str | None = None
    """The kind of runner the task wants, such as ``backend``. Recorded in the registry."""
    slot_path: Path | None = None
    """A checkout that the caller brings; it is used and never destroyed. None: a slot is allocated from the pool."""
    slot_id: str | None = None
    """The caller's name for ``slot_path``."""
    branch_name: str | None = None
    """The branch to deliver on. None: ``feature/task-{spec}-{id}-{slug of the title}``."""
    repo_url: str | None = None
    """The repository to work on: an https, ssh or file URL, or a local path. Needed where no ``slot_path`` is given."""
    base_ref: str | None = None
    """Branch, tag or full commit id to start from. None: the default branch, or the HEAD of ``slot_path``."""
    test_commands: TextList = ()
    """Shell commands, run in order at the top of a throw-away copy of the checkout; exit code 0 means passed."""
    setup_commands: TextList = ()
    """Shell commands that install what the tests need, in the same sandbox and with network: once, then kept for the
    runs whose dependency files are the same. What they write is there in every run of the tests."""
    fail_fast: bool = True
    """Whether the first failing test command ends the tests."""
    timeout_seconds: float = Field(default=DEFAULT_TASK_TIMEOUT_SECONDS, gt=0, le=7 * 86_400, allow_inf_nan=False)
    """Wall time for the whole run."""
    max_tokens: int | None = Field(default=None, gt=0)
    """The most tokens that one model answer may have. None: as configured in ``LLMConfig.max_tokens``."""
    related_files: TextList = ()
    """Paths in the repository that the model must be shown."""
    playbook_path: Path | None = None
    """A YAML file with instructions and test commands that many tasks share; see ``docs/playbooks.md``."""
    metadata: JsonObject = Field(default_factory=dict)
    """Anything JSON can hold, at most 64 deep and a million characters; recorded in the registry with the task."""
    lease: HandedLease | None = None
    """The hold on the task, where a dispatcher has claimed it for this run. None: the run claims it by itself."""

    @field_validator("lease", mode="before")
    @classmethod
    def _check_lease(cls, value: object) -> object:
        return value.model_dump() if isinstance(value, BaseModel) else value  # as claims give it

    @field_validator("task_id")
    @classmethod
    def _check_task_id(cls, value: str) -> str:
        return _names.check_task_id(value)

    @field_validator("spec_name")
    @classmethod
    def _check_spec_name(cls, value: str) -> str:
        return _names.check_spec_name(value)

    @field_validator("title")
    @classmethod
    def _check_title(cls, value: str) -> str:
        if not visible(value).strip() or _names.has_control_character(value):
            raise ValueError("must be one line of text")
        return value.strip()

    @field_validator("branch_name")
    @classmethod
    def _check_branch_name(cls, value: str | None) -> str | None:
        return None if value is None else _names.check_branch_name(value)

    @field_validator("base_ref")
    @classmethod
    def _check_base_ref(cls, value: str | None) -> str | None:
        return None if value is None else _names.check_branch_name(value.removeprefix("refs/heads/"))

    @field_validator("repo_url")
    @classmethod
    def _check_repo_url(cls, value: str | None) -> str | None:
        if value is None or not value.startswith("~"):
            return None if value is None else _names.check_repository_url(value)
        return str(_names.expand_home(Path(_names.check_repository_url(value))))

    @field_validator("slot_path", "playbook_path")
    @classmethod
    def _check_path(cls, value: Path | None) -> Path | None:
        return None if value is None else _names.expand_home(value)

    @field_validator("related_files")
    @classmethod
    def _check_related_files(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return checked_related_files(value)

    @field_validator("test_commands", "setup_commands")
    @classmethod
    def _check_commands(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return checked_commands(value)

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if self.slot_path is None and self.repo_url is None:
            raise ValueError(
                "either repo_url (a slot is allocated for it) or slot_path (a checkout you bring) is needed"
            )
        if self.slot_id is not None and self.slot_path is None:
            raise ValueError("slot_id names a checkout that you bring: give slot_path with it")
        return self

    @property
    def branch(self) -> str:
        """The branch to deliver on: the one named, or one made of spec, id and title."""
        if self.branch_name is not None:
            return self.branch_name
        return _names.task_branch(self.spec_name, self.task_id, self.title)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """The task in a YAML file; relative paths in it are relative to the file's folder."""
        file = Path(path)
        data = read_yaml_mapping(file, what="task file", error_type=TaskContextValidationError)
        for key in ("slot_path", "playbook_path"):
            if isinstance(data.get(key), str) and not data[key].startswith("~"):
                data[key] = file.parent / data[key]
        url = data.get("repo_url")
        if isinstance(url, str) and url.startswith("."):
            try:
                data["repo_url"] = str((file.parent / url).resolve())
            except ValueError as error:  # a NUL, or a name that the file system's encoding cannot say
                raise TaskContextValidationError(f"Invalid task: repo_url: {error}.") from error
        return cls(**data)


class TextEdit(Value):
    """One edit of a file's text: where ``search`` stands, ``replace`` shall stand; see ``docs/edit-formats.md``."""

    search: str
    """The text to find. Empty: none, and ``replace`` is put where ``line`` or ``at_end`` says, or makes a new file."""
    replace: str
    whole_lines: bool = True
    """Whether both are lines of the file from their first character to their line break; else any part of its text."""
    line: int | None = None
    """The number of the line, counted from 1, at which the answer says that ``search`` begins: only a hint."""
    anchors: tuple[str, ...] = ()
    """Lines of the file that come, in this order, before the place."""
    heading: str = ""
    """The line under which a unified diff says that the place is: a hint, often cut short or made up."""
    at_end: bool = False
    """Whether the place is at the end of the file."""
    final_newline: Literal["kept", "stated", "added"] = "kept"
    """How the file ends afterwards: as it did; where ``replace`` becomes its end, as that does; or with a newline."""
    every: bool = False
    """Whether all places are meant, however many there are."""


class CodeChange(Value):
    """One change to one file, as the model asked for it; not yet checked against anything."""

    operation: Literal["create", "modify", "edit", "delete", "rename"]
    file_path: str
    content: str | None = None
    """The whole new text of the file; None for ``delete`` and ``edit``, and for a ``rename`` that keeps the text."""
    new_path: str | None = None
    """Where a ``rename`` moves the file to."""
    exact: bool = True
    """Whether ``content`` says how the file ends. A fenced block cannot say that its file has no final newline."""
    edits: tuple[TextEdit, ...] = ()
    """What an ``edit``, or a ``rename`` without ``content``, does to the file's text."""
    in_order: bool = False
    """Whether the edits' places follow each other in the file in the order of ``edits``, as those of a diff do."""
    must_be_new: bool = False
    """Whether the answer takes it that there is no such file, as a diff from ``/dev/null`` does: none is replaced."""
    executable: bool | None = None
    """Whether the file shall be executable. None: as it was; a new file is not."""


class LLMResponse(Value):
    """A model's answer, read as a change set."""

    code_changes: tuple[CodeChange, ...]
    explanation: Explanation = ""
    model: ModelName = ""
    """The model that answered, as the endpoint names it."""
    edit_format: str = ""
    """The format the answer came in: ``json``, ``files``, ``search_replace``, ``unified_diff`` or ``patch``."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens_used: int = 0
    """Prompt and completion together, as the endpoint counted them; 0 where it does not say."""
    request_id: Writable | None = None


class Message(Value):
    """One message of a conversation with a model."""

    role: Literal["system", "user", "assistant"]
    content: str


class ModelAnswer(Value):
    """One whole answer of a model, as text: never a truncated, refused or empty one. All that is known of the call."""

    text: Writable
    model: Writable
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Reasoning included."""
    cached_prompt_tokens: int = 0
    """How many of the prompt's tokens the endpoint had in its cache; 0 where it does not say."""
    reasoning_tokens: int = 0
    """How many of the completion's tokens were thought and not said; 0 where the endpoint does not say."""
    usage_is_estimated: bool = False
    """Whether prompt_tokens, completion_tokens or both are our estimate, because the endpoint told none."""
    request_id: Writable | None = None
    """The endpoint's name for the call: its ``x-request-id``, else the completion's id."""
    attempts: int = 1
    """How many requests were sent for it: failed tries, and forms that the endpoint refused, included."""
    latency_seconds: float = 0.0
    """From the sending of the last request to the end of its answer."""
    finish_reason: Writable | None = None
    """The endpoint's word for why the answer ended."""
    asked_format: str = "text"
    """What was asked of the endpoint: ``json_schema``, ``json_object_with_schema``, ``json_object`` or ``text``."""
    is_streamed: bool = False
    """Whether the answer came as a stream."""
    left_out: tuple[str, ...] = ()
    """Settings of the question that the endpoint refused, so that it was asked without: ``temperature``."""
