"""The one module that replaces foreign attributes."""

from __future__ import annotations

import copy
import functools
import inspect
import os
import pickle
import types
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwatch.core.patches import Beside, ListItem, PatchSet


def seen(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return f"ours({original(*args, **kwargs)})"


def target() -> Any:
    return types.SimpleNamespace(f=lambda: "real")


def foreign(owner: Any) -> Callable[[], None]:
    """A patcher that only saves and restores the attribute."""
    saved = owner.f
    owner.f = lambda: f"foreign({saved()})"
    return lambda: setattr(owner, "f", saved)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_wrapped_function_can_be_pickled(protocol: int) -> None:
    """os.kill and other wrapped functions are pickled by name, as without patches, and copied as functions are."""
    patches, plain = PatchSet(), os.kill
    patches.around(os, "kill", lambda original, args, kwargs: original(*args, **kwargs))
    try:
        assert os.kill is not plain
        sent = pickle.dumps(functools.partial(os.kill, os.getpid()), protocol)
        assert copy.copy(os.kill) is copy.deepcopy(os.kill) is os.kill
    finally:
        patches.undo_all()
    assert b"loopwatch" not in sent
    assert pickle.loads(sent)(0) is None


class Recorder:
    """Records the stages of a call."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        hear = self.heard.append
        self.beside = Beside(lambda: hear("before"), lambda: hear("over"), hear)


def test_beside_callbacks() -> None:
    """The callbacks run before, at the end and with the result, the last one only without an exception."""

    def fails() -> None:
        raise OSError("no more")

    patches, recorder, target = PatchSet(), Recorder(), types.SimpleNamespace(works=lambda: 7, fails=fails)
    before = dict(vars(target))
    for name in before:
        patches.beside(target, name, recorder.beside)
    assert [target.works(), target.works()] == [7, 7]
    assert recorder.heard == ["before", "over", 7] * 2
    recorder.heard.clear()
    for _ in range(2):
        with pytest.raises(OSError, match="no more") as raised:
            target.fails()
        assert [each.name for each in raised.traceback] == ["test_beside_callbacks", "fails"], "no own frame"
    assert recorder.heard == ["before", "over"] * 2
    with pytest.raises(TypeError):
        target.works(1)
    with pytest.raises(TypeError):
        target.works(default=1)
    patches.undo_all()
    assert vars(target) == before


def test_beside_looks_like_the_original() -> None:
    """Name, signature, copies and pickles are those of the function in C."""
    patches, plain = PatchSet(), os.getpid
    patches.beside(os, "getpid", Recorder().beside)
    try:
        ours = os.getpid
        assert ours is not plain and ours() == plain()
        assert (ours.__name__, ours.__doc__, repr(ours)) == (plain.__name__, plain.__doc__, repr(plain))
        assert inspect.signature(ours) == inspect.signature(plain) and inspect.isbuiltin(ours)
        assert copy.copy(ours) is copy.deepcopy(ours) is ours
        assert pickle.loads(pickle.dumps(ours)) is plain or pickle.loads(pickle.dumps(ours)) is ours
    finally:
        patches.undo_all()
    assert os.getpid is plain


def test_a_residue_beside_a_call_is_used_again() -> None:
    """Under a foreign wrapper the patch stays in place, inactive, and is reused by the next patch."""
    patches, recorder, target = PatchSet(), Recorder(), types.SimpleNamespace(f=lambda: "real")
    patches.beside(target, "f", recorder.beside)
    ours = target.f
    foreign(target)
    patches.undo_all()
    assert (target.f(), recorder.heard) == ("foreign(real)", [])
    again = Recorder()
    patches.beside(target, "f", again.beside)
    assert target.f() == "foreign(real)" and again.heard == ["before", "over", "real"]
    assert ours() == "real" and recorder.heard == []


def test_wrapped_method_can_be_pickled() -> None:
    """A wrapped method found on an object is pickled with the object."""
    patches = PatchSet()
    patches.around(Pickled, "double", lambda original, args, kwargs: original(*args, **kwargs))
    try:
        assert pickle.loads(pickle.dumps(Pickled().double))(2) == 4
    finally:
        patches.undo_all()


class Pickled:
    """Has a wrapped method."""

    def double(self, number: int) -> int:
        """Return twice the number."""
        return 2 * number


def test_off_on_off() -> None:
    """A patch intercepts while it is on, and undo restores the very same object."""
    owner, patches = target(), PatchSet()
    real = owner.f
    patch = patches.around(owner, "f", seen)
    assert owner.f() == "ours(real)"
    patches.undo(patch)
    assert owner.f is real
    patches.undo(patch)
    assert owner.f is real


def test_inherited_attribute_is_deleted_again() -> None:
    """Patching an inherited method leaves no attribute on the class afterwards."""

    class Base:
        def f(self) -> str:
            return "real"

    class Derived(Base):
        pass

    patches = PatchSet()
    patches.around(Derived, "f", seen)
    assert Derived().f() == "ours(real)"
    assert Base().f() == "real"
    patches.undo_all()
    assert "f" not in vars(Derived)
    assert Derived().f() == "real"


def test_signature_survives() -> None:
    """The signature seen by inspection stays the same."""

    def f(a: int, *, b: str = "x") -> None:
        """Documented."""

    owner, patches = types.SimpleNamespace(f=f), PatchSet()
    patches.around(owner, "f", seen)
    assert inspect.signature(owner.f) == inspect.signature(f)
    assert owner.f.__doc__ == "Documented."
    patches.undo_all()


def test_residue_is_transparent_and_used_again() -> None:
    """Under a foreign wrapper the inactive patch is transparent, and a thousand re-installs add no layer."""
    owner, patches = target(), PatchSet()
    patches.around(owner, "f", seen)
    foreign(owner)
    for _ in range(1000):
        patches.undo_all()
        assert owner.f() == "foreign(real)"
        patches.around(owner, "f", seen)
        assert owner.f() == "foreign(ours(real))"
    patches.undo_all()


def test_uncalled_residue_is_not_reused() -> None:
    """If another patcher restored the original, the next patch is made anew and works."""
    owner, patches = target(), PatchSet()
    real = owner.f
    patches.around(owner, "f", seen)
    undo_foreign = foreign(owner)
    patches.undo_all()
    undo_foreign()
    owner.f = real
    patches.around(owner, "f", seen)
    assert owner.f() == "ours(real)"
    patches.undo_all()
    assert owner.f is real


def test_foreign_undo_after_undo() -> None:
    """A foreign patcher that restores a transparent patch is handled: the patch is taken over."""
    owner, patches = target(), PatchSet()
    patches.around(owner, "f", seen)
    undo_foreign = foreign(owner)
    patches.undo_all()
    undo_foreign()
    assert owner.f() == "real"
    patches.around(owner, "f", seen)
    assert owner.f() == "ours(real)"
    patches.undo_all()
    assert owner.f() == "real"


@given(st.lists(st.sampled_from(["ours", "undo", "foreign", "undo foreign"]), max_size=30))
def test_patches_never_stack_in_any_order(steps: list[str]) -> None:
    """In any order of installs, uninstalls and foreign patches there is at most one layer, in the right state."""
    owner, patches, undos, on = target(), PatchSet(), [], False
    for step in steps:
        if step == "ours" and not on:
            patches.around(owner, "f", seen)
            on = True
        elif step == "undo":
            patches.undo_all()
            on = False
        elif step == "foreign":
            undos.append(foreign(owner))
        elif step == "undo foreign" and undos:
            undos.pop()()
        text = owner.f()
        assert text.count("ours") <= 1
        assert "real" in text
        if not on:
            assert "ours" not in text
    patches.undo_all()
    assert "ours" not in owner.f()


def test_functools_wraps_is_recognised() -> None:
    """A residue below a wrapper made with functools.wraps is found and reused."""
    owner, patches = target(), PatchSet()
    patches.around(owner, "f", seen)
    inner = owner.f

    @functools.wraps(inner)
    def wrapper() -> str:
        return f"wrapped({inner()})"

    owner.f = wrapper
    patches.undo_all()
    patches.around(owner, "f", seen)
    assert owner.f() == "wrapped(ours(real))"
    patches.undo_all()


def test_list_item_leaves_others_alone() -> None:
    """Removing an entry from a shared list keeps the entries of others, wherever the entry has moved."""
    shared: list[object] = ["a"]
    item = ListItem(shared, "ours")
    shared.insert(0, "b")
    item.undo()
    item.undo()
    assert shared == ["b", "a"]


def test_missing_attribute_is_an_error() -> None:
    """A missing attribute cannot be patched, and the failure changes nothing."""
    owner, patches = target(), PatchSet()
    with pytest.raises(AttributeError):
        patches.around(owner, "g", seen)
    assert not hasattr(owner, "g")
