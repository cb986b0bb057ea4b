"""A calculator as an environment: the policy writes `<calc>3*(4+5)</calc>` and reads `27` before it goes on."""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

from actors.environments.protocol import Message
from actors.records import Prompt

LONGEST = 200  # characters of an expression
_CALL = re.compile(r"<calc>(.*?)</calc>", re.DOTALL)
_OPERATIONS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Calculator:
    """Answers each message that ends with a call; the first message without a call ends the conversation."""

    def __init__(self, role: str = "tool") -> None:
        """Take the `role` of the answers: some chat templates have no `tool`."""
        self._role = role

    def reset(self, prompt: Prompt) -> None:
        """Do nothing: no state is kept between calls."""

    def step(self, message: str) -> Message | None:
        """Evaluate the last call in `message`."""
        calls = _CALL.findall(message)
        return {"role": self._role, "content": evaluate(calls[-1])} if calls else None


def evaluate(expression: str) -> str:
    """Compute `expression` exactly: numbers, + - * / and parentheses. Return `error` and why if it cannot."""
    if len(expression) > LONGEST:
        return f"error: more than {LONGEST} characters"
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except ZeroDivisionError:
        return "error: division by zero"
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "error: only numbers, + - * / and parentheses"
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _OPERATIONS[type(op)](_value(left), _value(right))
    raise ValueError(ast.dump(node))
