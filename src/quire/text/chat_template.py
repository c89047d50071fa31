"""Chat templates: from messages to the text that a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError
from jinja2.exceptions import TemplateError as JinjaError

from quire.text.jinja_guard import BUDGET, Budget, OverBudget, RaisedByTemplate, compile_template
from quire.text.protection import Marker, Rendered, TemplateError
from quire.text.tokenizer import Tokenizer
from quire.weights.errors import CheckpointError

MAX_DETAIL = 300
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_CONTINUE_HERE = "continue here"

Message = Mapping[str, Any]


class ChatTemplate:
    """Renders as Transformers' ``apply_chat_template`` does. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, templates: Mapping[str, str]) -> None:
        """``templates`` by name; ``tool_use`` serves requests with tools. Raises ``CheckpointError``."""
        self._specials = tokenizer.special_pattern
        self._variables = dict(tokenizer.facts.named)
        self._templates = {name: _Compiled(text) for name, text in templates.items()}

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> Rendered:
        """The conversation as text, ready for ``Tokenizer.encode_template``. Raises ``TemplateError``.

        ``variables`` are the template's own (``enable_thinking``, ...). ``continue_final_message`` leaves the last
        message open, for the model to go on with.
        """
        if not messages:
            raise TemplateError("messages must not be empty.")
        if continue_final_message and add_generation_prompt:
            raise TemplateError(
                "continue_final_message needs add_generation_prompt to be false.", "continue_final_message"
            )
        template = self._choose(tools)
        marker = Marker(self._specials, (messages, tools, variables))
        try:
            chat = [_message(m, marker, template.takes_parts) for m in messages]
            tail = marker.mark(_CONTINUE_HERE) if continue_final_message else None
            if tail is not None:
                _append(chat[-1], tail + " ")
            values = self._variables | {"documents": None} | marker.plain(variables)
            values |= {"messages": chat, "tools": marker.plain(tools), "add_generation_prompt": add_generation_prompt}
            text = template.render(values, marker.chars)
        except RecursionError:
            raise TemplateError("Messages are nested too deeply.") from None
        literals = marker.literals
        if tail is not None:
            text = _cut_at(text, tail)
            del literals[tail]
        return Rendered(text, literals)

    def _choose(self, tools: Any) -> _Compiled:
        named = self._templates
        template = named.get("tool_use") if tools is not None else None
        template = template or named.get("default")
        if template is None:
            raise TemplateError(
                f"The model has only named chat templates ({', '.join(sorted(named))}); use --chat-template."
            )
        return template


def load_chat_template(tokenizer: Tokenizer, override: str | None = None) -> ChatTemplate | None:
    """The model's templates, or the text ``override``; ``None`` when there are none. Raises ``CheckpointError``."""
    templates = {"default": override} if override is not None else dict(tokenizer.facts.templates)
    return ChatTemplate(tokenizer, templates) if templates else None


class _Compiled:
    def __init__(self, source: str) -> None:
        try:
            self._template = compile_template(source)
            self.takes_parts = _loops_over_content(self._template.environment.parse(source))
        except TemplateSyntaxError as error:
            why = _one_line(error.message or "")
            raise CheckpointError(f"The chat template is no valid Jinja (line {error.lineno}: {why}).") from None
        except (JinjaError, RecursionError, ValueError) as error:
            raise CheckpointError(f"The chat template cannot be used: {_one_line(str(error))}.") from None

    def render(self, values: Mapping[str, Any], input_chars: int) -> str:
        budget = Budget(input_chars)
        pieces, size = [], 0
        try:
            for piece in self._template.generate({**values, BUDGET: budget}):
                size += len(piece)
                budget.size(size)
                pieces.append(piece)
        except RaisedByTemplate as error:
            raise TemplateError(f"The chat template refuses these messages: {_one_line(str(error))}") from None
        except OverBudget as error:
            raise TemplateError(f"The chat template was stopped: {error}.") from None
        except UndefinedError as error:
            raise TemplateError(f"The chat template misses something: {_one_line(str(error))}.") from None
        except SecurityError:
            raise TemplateError("The chat template does something that templates may not do.") from None
        except RecursionError:
            raise TemplateError("The chat template, or a message, is nested too deeply.") from None
        except Exception as error:  # a template can raise whatever Python can
            raise TemplateError(f"The chat template cannot render these messages ({type(error).__name__}).") from None
        return "".join(pieces)


def _message(message: Any, marker: Marker, takes_parts: bool) -> dict[str, Any]:
    """A message as templates expect it: no null fields, reasoning under all its names, content in the right form."""
    if not isinstance(message, Mapping):
        raise TemplateError("Each of messages must be an object with role and content.")
    given = {key: value for key, value in message.items() if value is not None}
    content = given.get("content")
    if isinstance(content, (list, tuple)) and not takes_parts:
        given["content"] = _joined(content)
    plain: dict[str, Any] = marker.plain(given)
    reasoning = next((plain[key] for key in _REASONING_FIELDS if key in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _joined(parts: Sequence[Any]) -> str:
    texts = [
        part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None for part in parts
    ]
    if any(not isinstance(text, str) for text in texts):
        raise TemplateError("This model takes only text: content must be a text or a list of text parts.")
    return "\n".join(map(str, texts))


def _append(message: dict[str, Any], text: str) -> None:
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + text
        return
    part = next((p for p in reversed(content or []) if isinstance(p, dict) and isinstance(p.get("text"), str)), None)
    if part is None:
        raise TemplateError("continue_final_message needs a last message with text.", "continue_final_message")
    part["text"] += text


def _cut_at(text: str, tail: str) -> str:
    """The text up to the place where the model goes on; blanks that the template trims stay trimmed."""
    at = text.rfind(tail)
    if at < 0:
        raise TemplateError("The chat template leaves out the message to be continued.", "continue_final_message")
    return text[:at] if text.startswith(" ", at + 1) else text[:at].rstrip()


def _loops_over_content(tree: nodes.Template) -> bool:
    """Whether the template reads content as a list of parts: it loops over ``message.content`` or a copy of it."""
    names = {"content"}
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, names):
            names.add(assign.target.name)
    return any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node, names: set[str]) -> bool:
    while isinstance(node, nodes.Filter) and node.node is not None:
        node = node.node
    match node:
        case nodes.Name(name=name):
            return name in names
        case nodes.Getattr(attr="content"):
            return True
        case nodes.Getitem(arg=nodes.Const(value="content")):
            return True
        case _:
            return False


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_DETAIL].rstrip(".")
