"""The suite finds every mistake of the mutation list, and nothing where there is none."""

import mutants
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NUMBERS = range(len(mutants.MUTANTS))


def test_the_list_is_whole():
    assert len({mutant.name for mutant in mutants.MUTANTS}) == 22


@pytest.mark.parametrize("number", NUMBERS, ids=[mutant.name for mutant in mutants.MUTANTS])
def test_a_planted_mistake_is_found(number):
    found, _ = mutants.run(number)
    assert found, f"survived: {mutants.MUTANTS[number].name}"


@pytest.mark.parametrize("number", NUMBERS, ids=[mutant.name for mutant in mutants.MUTANTS])
def test_without_it_the_same_tests_pass(number):
    same = [i for i in NUMBERS if mutants.MUTANTS[i].tests == mutants.MUTANTS[number].tests]
    found, _ = mutants.run(same[0], is_planted=False)
    assert found == []
