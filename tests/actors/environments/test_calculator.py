import pytest

from actors.environments.calculator import Calculator, evaluate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("347+589-112", "824"),
        (" 3 * (4 + 5) ", "27"),
        ("-2*-3", "6"),
        ("1/3", "0.3333333333"),
        ("0.1+0.2", "0.3"),
        ("2.50*4", "10"),
        ("10/4", "2.5"),
        ("1/0", "error: division by zero"),
        ("2**999999999", "error: only numbers, + - * / and parentheses"),
        ("__import__('os')", "error: only numbers, + - * / and parentheses"),
        ("True+1", "error: only numbers, + - * / and parentheses"),
        ("1e999", "error: only numbers, + - * / and parentheses"),
        ("", "error: only numbers, + - * / and parentheses"),
        ("1+\0", "error: only numbers, + - * / and parentheses"),
        ("(" * 150, "error: only numbers, + - * / and parentheses"),
        ("1" * 201, "error: more than 200 characters"),
    ],
)
def test_only_arithmetic_is_computed_and_exactly(expression, value):
    assert evaluate(expression) == value


def test_the_last_call_of_a_message_is_answered_and_a_message_without_one_ends_the_conversation():
    calculator = Calculator(role="user")
    assert calculator.step("<calc>1+1</calc> no, <calc>2*3</calc>") == {"role": "user", "content": "6"}
    assert calculator.step("#### 6") is None
