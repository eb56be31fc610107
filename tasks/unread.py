"""Images of a data set that stay encoded until a task's code asks for a pixel.

lmms-eval decodes every image of a row whenever the row is looked at, and its `process_docs` may look at all rows at
once. Here a row holds a name in place of each image. Read as an image the name is an `UnreadImage`: size and mode are
known from the head of the file, and pixels are decoded when they are first touched. One that nobody touched still says
which file it is, so an image is known by its file's hash without being decoded, and a row by its images.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import datasets
from PIL import Image, ImageFile

from harness.core.errors import PrunebenchError
from harness.core.shape import Size
from tasks.pictures import check_image, image_size, undecodable

#: begins every name that stands for an image; no file is called so
_MARK = "prunebench-image:"
_numbers = itertools.count()
_stores: weakref.WeakValueDictionary[str, EncodedImages] = weakref.WeakValueDictionary()


class Head(NamedTuple):
    """What an image's file says before its pixels."""

    size: Size
    """(height, width) in pixels, turned upright."""
    mode: str
    format: str | None


@dataclass(eq=False)
class EncodedImages:
    """The columns of images of a table, encoded, by row, column and place in the row's list (0 where it is no list)."""

    task: str
    rows: datasets.Dataset
    """The table; its images are not decoded (`Image(decode=False)`), and its other columns are not read here."""
    columns: tuple[str, ...]
    listed: frozenset[str]
    """Those whose rows are lists of images."""
    mend: str
    _one: dict[str, datasets.Dataset] = field(default_factory=dict)
    _digests: dict[tuple[int, int, int], str] = field(default_factory=dict)
    _heads: dict[tuple[int, int, int], Head] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.number = str(next(_numbers))
        _stores[self.number] = self
        self._one = {column: self.rows.select_columns([column]) for column in self.columns}

    def key(self, row: int) -> str:
        return f"{self.task}/{row:06d}"

    def name(self, row: int, column: int, place: int) -> str:
        return f"{_MARK}{self.number}/{row}/{column}/{place}"

    def encoded(self, row: int, column: int, place: int) -> bytes:
        """The file of an image. Raises PrunebenchError where the table holds none."""
        name = self.columns[column]
        value = self._one[name][row][name]
        value = value[place] if name in self.listed else value
        data, path = (value or {}).get("bytes"), (value or {}).get("path")
        if data is None and path:
            try:
                with open(path, "rb") as file:
                    data = file.read()
            except OSError as error:
                raise PrunebenchError(
                    f"{self.key(row)}, column {name}: expected an image at {path}: {error.strerror or error};"
                    f" {self.mend}"
                ) from None
        if not isinstance(data, bytes):
            raise PrunebenchError(f"{self.key(row)}, column {name}: expected an image, found none; {self.mend}")
        return data

    def digest(self, row: int, column: int, place: int) -> str:
        """sha256 of the file. Raises PrunebenchError where it is no image of a bearable size."""
        where = row, column, place
        if where not in self._digests:
            self._read(where)
        return self._digests[where]

    def head(self, row: int, column: int, place: int) -> Head:
        """What the head of the file says, read once. Raises PrunebenchError as `digest`."""
        where = row, column, place
        if where not in self._heads:
            self._read(where)
        return self._heads[where]

    def _read(self, where: tuple[int, int, int]) -> None:
        data, key = self.encoded(*where), self.key(where[0])
        check_image(data, key)
        with Image.open(io.BytesIO(data)) as opened:
            mode, kind = opened.mode, opened.format
        self._heads[where] = Head(image_size(lambda: {"bytes": data}, key), mode, kind)
        self._digests[where] = hashlib.sha256(data).hexdigest()

    def near(self, row: int) -> tuple[Any, ...]:
        """What tells the images of a row from others without reading them: lengths of the files and their last bytes.

        Rows with the same images have the same; two different images have it by chance only.
        """
        found: list[Any] = []
        for column in self.columns:
            scalar = self.rows.data.column(column)[row]
            for one in (scalar.values or ()) if column in self.listed and scalar.is_valid else (scalar,):
                value = one["bytes"] if one.is_valid else None
                if value is None or not value.is_valid:
                    found.append(str(one["path"]) if one.is_valid else None)
                    continue
                view = memoryview(value.as_buffer())
                found.append((len(view), bytes(view[-_TAIL:]), bytes(view[len(view) // 2 :][:_TAIL])))
        return tuple(found)


#: bytes of a file's end and middle that tell it from others of its length
_TAIL = 64


class Origin(NamedTuple):
    """Which image of a table it is."""

    store: EncodedImages
    row: int
    column: int
    place: int

    @property
    def digest(self) -> str:
        return self.store.digest(self.row, self.column, self.place)

    @property
    def encoded(self) -> bytes:
        return self.store.encoded(self.row, self.column, self.place)

    @property
    def key(self) -> str:
        return self.store.key(self.row)

    def size(self) -> Size:
        """(height, width) in pixels, turned upright as its file says."""
        return self.store.head(self.row, self.column, self.place).size

    def decode(self) -> Image.Image:
        """As `datasets` decodes it: upright. Raises PrunebenchError where the file is no whole image."""
        # lmms_eval.api.task sets it True: half an image would be answered as if it were whole
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        data = self.encoded
        try:
            image: Image.Image = _DECODE(datasets.Image(), {"bytes": data, "path": None})
        except Exception as error:
            raise undecodable(self.key, data, error) from None
        return image


_DECODE = datasets.Image.decode_example


class UnreadImage(Image.Image):
    """An image whose pixels are decoded when they are first touched. `origin` says which one it is until then."""

    def __init__(self, origin: Origin, rgb: bool = False) -> None:
        super().__init__()
        self.origin: Origin | None = origin
        self._rgb = rgb
        head = origin.store.head(origin.row, origin.column, origin.place)
        self._mode, self.format = "RGB" if rgb else head.mode, head.format
        self._size = (head.size[1], head.size[0])
        # `datasets` writes an image that has a file name as that name, without its pixels
        self.filename = origin.store.name(origin.row, origin.column, origin.place)

    def load(self) -> Any:
        if self.origin is not None:
            image = self.origin.decode()
            image = image.convert("RGB") if self._rgb else image
            self.origin, self.filename = None, ""
            self._im, self._mode, self._size = image.im, image.mode, image.size
            self.palette, self.info = image.palette, image.info
        return super().load()

    @property  # type: ignore[misc]
    def im(self) -> Any:
        if self.origin is not None:
            self.load()
        return super().im

    def convert(self, mode: str | None = None, *args: Any, **kwargs: Any) -> Image.Image:
        """To RGB it stays unread: that is how every image is shown to a model."""
        if self.origin is not None and mode == "RGB" and not args and not kwargs:
            return UnreadImage(self.origin, rgb=True)
        return super().convert(mode, *args, **kwargs)

    def copy(self) -> Image.Image:
        return super().copy() if self.origin is None else UnreadImage(self.origin, self._rgb)

    def __eq__(self, other: object) -> bool:
        if self.origin is not None and isinstance(other, UnreadImage) and other.origin is not None:
            return self.origin == other.origin
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]


def origin_of(name: object) -> Origin | None:
    """The image that a name stands for; None for every other text."""
    if not isinstance(name, str) or not name.startswith(_MARK):
        return None
    number, row, column, place = name.removeprefix(_MARK).split("/")
    return Origin(_stores[number], int(row), int(column), int(place))


#: `names_as_images` changes what all threads see, and images are loaded in several
_one_thread = threading.RLock()


@contextmanager
def names_as_images() -> Iterator[None]:
    """Inside, `datasets` reads a name in a column of images as an `UnreadImage`; images in full as ever.

    One thread at a time is inside.
    """

    def decode(self: datasets.Image, value: Any, token_per_repo_id: Any = None) -> Any:
        origin = origin_of(value.get("path")) if isinstance(value, dict) and value.get("bytes") is None else None
        return _DECODE(self, value, token_per_repo_id) if origin is None else UnreadImage(origin)

    with _one_thread:
        datasets.Image.decode_example = decode
        try:
            yield
        finally:
            datasets.Image.decode_example = _DECODE


# -------------------------------------------------------------------------------------------------------------- columns


def image_columns(rows: datasets.Dataset) -> tuple[tuple[str, ...], frozenset[str]]:
    """Columns of images, and those of lists of images. A struct of `bytes` and `path` is an image."""
    one = [name for name, feature in rows.features.items() if _is_image(feature)]
    many = [name for name, feature in rows.features.items() if _is_image(_entry(feature))]
    return tuple(name for name in rows.column_names if name in {*one, *many}), frozenset(many)


def _entry(feature: Any) -> Any:
    """The feature of a list's entries; None for what is no list."""
    if isinstance(feature, list):
        return feature[0]
    return getattr(feature, "feature", None)


def _is_image(feature: Any) -> bool:
    if isinstance(feature, datasets.Image):
        return True
    return (
        isinstance(feature, dict)
        and set(feature) == {"bytes", "path"}
        and str(getattr(feature["bytes"], "dtype", "")) in ("binary", "large_binary")
    )


def encoded_rows(rows: datasets.Dataset) -> datasets.Dataset:
    """The same table with images as their files: structs of `bytes` and `path` that nothing decodes. Copies none."""
    columns, listed = image_columns(rows)
    features = dict(rows.features)
    for column in columns:
        features[column] = (
            datasets.List(datasets.Image(decode=False)) if column in listed else datasets.Image(decode=False)
        )
    told = datasets.Features(features)
    table = rows.data
    if told.arrow_schema.types != table.schema.types:  # widths, or the order of a struct's fields
        table = datasets.table.table_cast(table, told.arrow_schema)
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=told))


def named_rows(store: EncodedImages, hidden: str) -> datasets.Dataset:
    """The rows of a store in memory, with a name in place of each image and the number of the row in column `hidden`.

    Read inside `names_as_images`.
    """
    import pyarrow as pa

    rows = store.rows
    light = rows.remove_columns(list(store.columns)) if store.columns else rows
    features = {**light.features}
    table = light.data.table if light.column_names else pa.table({hidden: range(len(rows))})
    for number, column in enumerate(store.columns):
        values = rows.data.column(column)
        if column in store.listed:
            lengths = values.combine_chunks().value_lengths().to_pylist()
            names: list[Any] = [
                None if n is None else [_name(store, row, number, i) for i in range(n)] for row, n in enumerate(lengths)
            ]
            features[column] = datasets.List(datasets.Image())
        else:
            valid = values.is_valid().to_pylist()
            names = [_name(store, row, number, 0) if known else None for row, known in enumerate(valid)]
            features[column] = datasets.Image()
        kind = datasets.Features({column: features[column]}).arrow_schema.field(column).type
        table = table.append_column(column, pa.array(names, kind))
    if hidden not in table.column_names:
        table = table.append_column(hidden, pa.array(range(len(rows)), pa.int64()))
    features[hidden] = datasets.Value("int64")
    ordered = datasets.Features({name: features[name] for name in (*rows.column_names, hidden)})
    table = table.select(list(ordered)).cast(ordered.arrow_schema)
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=ordered))


def _name(store: EncodedImages, row: int, column: int, place: int) -> dict[str, Any]:
    return {"bytes": None, "path": store.name(row, column, place)}


def origins(value: Any) -> Sequence[Origin]:
    """The images that a value of a row names, in order, wherever they stand in it."""
    if isinstance(value, UnreadImage):
        return [value.origin] if value.origin is not None else []
    if isinstance(value, dict):
        found = origin_of(value.get("path"))
        return [found] if found is not None else [o for v in value.values() for o in origins(v)]
    if isinstance(value, list | tuple):
        return [o for v in value for o in origins(v)]
    return []
