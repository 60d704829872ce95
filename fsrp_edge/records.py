"""Records: values that are checked when they are made and do not change; documents have a file of their own."""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fsrp_edge.errors import BadInputError, first_problem
from fsrp_edge.files import read_json, write_json


class Record(BaseModel):
    """A frozen model; a field that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Document(Record):
    """A record that is kept as a JSON file."""

    called: ClassVar[str]
    """What such a file is to its users, such as `a pruning plan`."""

    def save(self, path: Path) -> None:
        """Write the file by rename."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            BadInputError: there is no such file, or it is something else.
        """
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            raise BadInputError(f"{path} is not {cls.called}: {first_problem(error)}") from None
