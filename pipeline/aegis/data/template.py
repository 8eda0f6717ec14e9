"""Renders a tokenizer's chat template as transformers and llama.cpp do, and finds the control tokens it writes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import jinja2

from aegis.data.records import Message
from aegis.data.rejects import RowError
from aegis.data.thoughts import is_thought_tag
from aegis.data.tokenizer_parts import TokenizerParts
from aegis.errors import DataError
from aegis.messages import phrase

_KEPT = 256
_PROBE = ("first", "second", "third", "fourth")
_OWN_VARIABLES = frozenset({"self", "messages", "tools", "documents", "add_generation_prompt"})

_ENDS_GENERATION = re.compile(
    r"<\|(endoftext|end_of_text|eot_id|eom_id|im_end|end|return|call)\|>|<end_of_turn>|<EOT>|</s>|<eos>"
)
"""Tokens at which llama.cpp ends an answer because of their names, even if the template does not use them."""


class ChatTemplate:
    """The template of a tokenizer that has one.

    `apply_chat_template` uses the same compiled template, but copies the messages first, because they may contain more
    than text. The copy takes longer than rendering, and a chat is rendered once per answer.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self._compiled = _compile_jinja_template
        self._parts = parts
        self._special_tokens = parts.special_tokens
        self.render_plain = lru_cache(_KEPT)(self._render_plain)
        """Render messages, given as role and text, like `render`; the last results are kept."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        prompt: bool,
        tools: list[dict[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """Render the messages to one text.

        Args:
            prompt: add the generation prompt.
            tools: the template's variable `tools`.
            variables: other variables of the template.

        Raises:
            RowError: the template refuses these messages, or one of `variables` is not a row's to set.
            DataError: it cannot be used at all.
        """
        for name in variables or {}:
            if self._is_own(name):
                raise RowError(phrase("chat.own_variable", name=name))
        try:
            template = self._compiled(self._source(tools))
            text = template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=prompt,
                **self._special_tokens,
                **(variables or {}),
            )
        except (jinja2.exceptions.SecurityError, jinja2.TemplateSyntaxError) as error:
            raise DataError("rendering.unusable", name=type(error).__name__, error=error) from error
        except MemoryError:
            raise
        except Exception as error:  # a template is a program: it can raise anything
            raise RowError(phrase("chat.template_refuses", name=type(error).__name__, error=error)) from error
        return str(text)

    def _render_plain(self, messages: tuple[tuple[str, str | None], ...]) -> str:
        return self.render([{"role": role, "content": text} for role, text in messages], prompt=False)

    def names(self, variable: str, tools: list[dict[str, object]] | None = None) -> bool:
        """Whether the template uses a variable, or a message's key, that a row may set."""
        if self._is_own(variable):
            return False
        return re.search(rf"\b{re.escape(variable)}\b", self._source(tools)) is not None

    def _is_own(self, variable: str) -> bool:
        return variable in _OWN_VARIABLES or variable in self._special_tokens

    def _source(self, tools: list[dict[str, object]] | None) -> str:
        source = self._parts.template if tools is None else self._parts.tools_template
        if source is None:
            raise ValueError(self._parts.no_default)
        return source

    def turn_tokens(self, added: Sequence[str]) -> frozenset[str] | None:
        """Return the added tokens that open and end a plain chat's turns; None if the template refuses such a chat.

        White space and the tags of a thought do not count, although templates write both between turns.
        """
        roles = ("user", "assistant", "user", "assistant")
        probe: list[Message] = [{"role": role, "content": text} for role, text in zip(roles, _PROBE, strict=True)]
        try:
            text = self.render(probe, prompt=False) + self.render(probe[:1], prompt=True)
        except RowError:
            return None
        if any(word not in text for word in _PROBE):
            return None
        found = re.findall("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or r"(?!)", text)
        return frozenset(token for token in found if token.strip() and not is_thought_tag(token))


class ControlTokens:
    """The added tokens of a tokenizer that a row's text must not contain.

    No text may contain a token that opens or ends a turn, or ends an answer in llama.cpp. Texts that the assistant does
    not write may not contain special tokens either. An answer may contain other tokens, such as <think> or <tool_call>.
    White space is always allowed, although Gemma has it among its added tokens.

    Args:
        template: the tokenizer's template, if it has one.
    """

    def __init__(self, parts: TokenizerParts, template: ChatTemplate | None) -> None:
        added = [(number, text) for number, text, _ in parts.added if text.strip()]
        contents = [text for _, text in added]
        turns = template.turn_tokens(contents) if template else frozenset()
        ending = {text for text in contents if text in parts.named or _ENDS_GENERATION.fullmatch(text)}
        special = {text for _, text, is_special in parts.added if is_special and text.strip()}
        # the template refuses a plain chat, so any added token may open or end a turn
        of_turns = ending | (set(contents) if turns is None else turns)
        self.enders = frozenset(number for number, text in added if text in of_turns)
        """Ids of the tokens that may end a turn."""
        in_answers = ending | special if turns is None else of_turns
        self._in_answers = _any_of(in_answers)
        self._elsewhere = _any_of(in_answers | special)

    def check(self, text: str, *, is_answer: bool) -> None:
        """Refuse a text that would end its turn, or open another one, when it is rendered.

        Raises:
            RowError: it contains such a token.
        """
        if match := (self._in_answers if is_answer else self._elsewhere).search(text):
            raise RowError(phrase("chat.control_token", match=match.group()))


def _any_of(texts: set[str] | frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")
