"""The three prompts: what they hold, that they end alike under every chat template, and how they are cut."""

import json

import numpy as np
import pytest
import tokenizers
from chain_prompts import CHAINS, arithmetic_tokenizer, make
from tokenizers import decoders, pre_tokenizers, trainers

from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf.tokenizer import load_tokenizer

# The quickstart's templates: every character is known to its tokenizer.
CHATML = (
    ["<|im_start|>", "<|im_end|>"],
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "<|im_end|>\n<|im_start|>assistant\n",
)
LLAMA3 = (
    ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + "
    "m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
)
QUESTION, RESPONSE, CRITIQUE = "7*8+6", "7*8=54, 4+6=10. Answer: 54 10", "Step 1 is wrong: 7*8=56, not 54."
SOLUTION = "7*8=56, 6+6=12."


def byte_level_tokenizer(folder, special, template):
    """A byte-level BPE of 320 tokens in the manner of a Hugging Face folder; the last special token ends a turn."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    # Newlines beside words and digits are worth merging here, as they are in real vocabularies.
    model.train_from_iterator(["assistant\n\nWhat is 12 + 30?\n", "user\nThe answer is 42.\n\n"] * 20, trainer)
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": special[-1]}))
    (folder / "chat_template.jinja").write_text(template)
    return load_tokenizer(folder)


@pytest.fixture(scope="module", params=["arithmetic", "chatml", "llama3"])
def template(request, tmp_path_factory):
    """A tokenizer, and the text by which its chat template ends every prompt."""
    if request.param == "arithmetic":
        return arithmetic_tokenizer(), "<|assistant|>"
    special, source, ending = {"chatml": CHATML, "llama3": LLAMA3}[request.param]
    return byte_level_tokenizer(tmp_path_factory.mktemp(request.param), special, source), ending


def every_prompt(prompts, question=QUESTION, response=RESPONSE, critique=CRITIQUE):
    return {
        "question": prompts.for_question(question),
        "critique": prompts.for_critique(question, response, None)[0],
        "critique_with_answer": prompts.for_critique(question, response, "56 12")[0],
        "critique_with_solution": prompts.for_critique(question, response, "56 12", SOLUTION)[0],
        "refinement": prompts.for_refinement(question, response, critique)[0],
        "refinement_without_critique": prompts.for_refinement(question, response, None)[0],
    }


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("templates", [CHAINS, {}], ids=["chains", "default"])
def test_all_prompts_end_in_the_same_generation_prefix(template, templates, system):
    """A refinement is sampled after one of them and trained after another."""
    tokenizer, ending = template
    prefix = tokenizer.encode(ending)
    assert prefix and tuple(prefix) == tokenizer.generation_prefix_ids()[-len(prefix) :]
    prompts = make(tokenizer, system=system, **templates)
    for tail in ("", "\n", "12", " ", "\n\n"):  # what a question or a critique ends in must not fuse with the prefix
        ids = every_prompt(prompts, question=QUESTION + tail, response=RESPONSE + tail, critique=CRITIQUE + tail)
        for name, prompt in ids.items():
            assert list(prompt[-len(prefix) :]) == prefix, name
        assert len({tuple(prompt) for prompt in ids.values()}) == len(ids)


def test_cut_prompts_end_in_it_too(template):
    tokenizer, ending = template
    prefix = tokenizer.encode(ending)
    prompts = make(tokenizer, 190, **CHAINS)
    for prompt, cut in (
        prompts.for_critique(QUESTION, RESPONSE * 20, "56 12"),
        prompts.for_refinement(QUESTION, RESPONSE * 20, CRITIQUE),
    ):
        assert cut and len(prompt) <= 190
        assert list(prompt[-len(prefix) :]) == prefix


def test_prompts_hold_what_they_are_given_and_no_more():
    tokenizer = arithmetic_tokenizer()
    texts = {name: tokenizer.decode(ids) for name, ids in every_prompt(make(tokenizer, **CHAINS)).items()}
    assert texts == {
        "question": "7*8+6",
        "critique": f"7*8+6\nTried: {RESPONSE}\nCheck.",
        "critique_with_answer": f"7*8+6\nTried: {RESPONSE}\nThe answer is 56 12.\nCheck.",
        "critique_with_solution": f"7*8+6\nTried: {RESPONSE}\nThe answer is 56 12. {SOLUTION}\nCheck.",
        "refinement": f"7*8+6\nTried: {RESPONSE}\nCritique: {CRITIQUE}\nTry again.",
        "refinement_without_critique": f"7*8+6\nTried: {RESPONSE}\nTry again.",
    }


def test_default_prompts_hold_question_response_and_critique(template):
    tokenizer, _ = template
    for name, ids in every_prompt(make(tokenizer)).items():
        text = tokenizer.decode(ids)
        assert QUESTION in text
        assert (RESPONSE in text) is (name != "question")
        assert (CRITIQUE in text) is (name == "refinement")
        assert ("56 12" in text) is (name in ("critique_with_answer", "critique_with_solution"))
        assert (SOLUTION in text) is (name == "critique_with_solution")


def test_braces_in_a_response_are_text(template):
    tokenizer, _ = template
    ids, _ = make(tokenizer, **CHAINS).for_refinement(QUESTION, "{critique}{question}", CRITIQUE)
    assert "Tried: {critique}{question}" in tokenizer.decode(ids)


def test_a_system_turn_opens_every_prompt(template):
    tokenizer, _ = template
    plain, framed = every_prompt(make(tokenizer, **CHAINS)), every_prompt(make(tokenizer, system="=x=", **CHAINS))
    for name, ids in framed.items():
        assert tokenizer.decode(ids).count("=x=") == 1
        assert len(ids) > len(plain[name])


def test_a_prompt_at_its_limit_is_whole_and_one_token_less_cuts_it(template):
    tokenizer, _ = template
    for name in ("critique", "refinement"):
        ask = lambda limit, name=name: getattr(make(tokenizer, limit, **CHAINS), f"for_{name}")(  # noqa: E731
            QUESTION, RESPONSE * 3, CRITIQUE
        )
        whole, cut = ask(1000)
        assert not cut
        at_limit, cut = ask(len(whole))
        assert not cut and list(at_limit) == list(whole)
        shorter, cut = ask(len(whole) - 1)
        assert cut and len(shorter) < len(whole)


def test_a_response_is_cut_in_its_middle_whatever_the_limit(template):
    """Down to no response at all, the rest stays whole, the limit is kept and the cut is reported."""
    tokenizer, _ = template
    whole, _ = make(tokenizer, **CHAINS).for_refinement(QUESTION, RESPONSE * 3, CRITIQUE)
    bare, _ = make(tokenizer, **CHAINS).for_refinement(QUESTION, "", CRITIQUE)
    for limit in range(len(bare), len(whole)):
        ids, cut = make(tokenizer, limit, **CHAINS).for_refinement(QUESTION, RESPONSE * 3, CRITIQUE)
        text = tokenizer.decode(ids)
        assert cut and len(bare) <= len(ids) <= limit
        assert f"{QUESTION}\nTried: " in text and f"\nCritique: {CRITIQUE}\nTry again." in text
        if limit - len(bare) > 20:
            assert "Tried: 7*8=54" in text and "54 10\nCritique" in text and "[...]" in text


def test_a_critique_is_cut_where_cutting_the_response_is_not_enough(template):
    tokenizer, _ = template
    bare, _ = make(tokenizer, **CHAINS).for_refinement(QUESTION, "", CRITIQUE)
    nothing, _ = make(tokenizer, **CHAINS).for_refinement(QUESTION, "", "")
    for limit in range(len(nothing), len(bare)):
        ids, cut = make(tokenizer, limit, **CHAINS).for_refinement(QUESTION, RESPONSE * 3, CRITIQUE)
        assert cut and len(ids) <= limit
        assert f"{QUESTION}\nTried: \nCritique: " in tokenizer.decode(ids)
    said = f"needs {len(nothing)} tokens with nothing left of its response and critique; refine.max_prompt_length"
    with pytest.raises(UserError, match=f"{said} is {len(nothing) - 1}; raise it"):
        make(tokenizer, len(nothing) - 1, **CHAINS).for_refinement(QUESTION, RESPONSE * 3, CRITIQUE)


def test_critique_and_refine_prompts_have_limits_of_their_own():
    prompts = Prompts(
        arithmetic_tokenizer(),
        max_prompt_length=4,
        max_critique_prompt_length=40,
        max_refinement_prompt_length=60,
        **CHAINS,
    )
    assert len(prompts.for_question("7*8+6*3+2")) > 4  # questions are measured when they are loaded
    critique, critique_cut = prompts.for_critique(QUESTION, RESPONSE * 5, None)
    refinement, refinement_cut = prompts.for_refinement(QUESTION, RESPONSE * 5, CRITIQUE)
    assert critique_cut and len(critique) == 40
    assert refinement_cut and 40 < len(refinement) <= 60


def test_a_reference_solution_is_cut_before_the_response_that_is_judged(template):
    tokenizer, _ = template
    bare = len(make(tokenizer, **CHAINS).for_critique(QUESTION, "", "56 12", "")[0])
    for limit in (bare, bare + 9, bare + 30):
        prompts = make(tokenizer, limit, **CHAINS)
        ids, cut = prompts.for_critique(QUESTION, RESPONSE * 3, "56 12", SOLUTION * 9)
        text = tokenizer.decode(ids)
        assert cut and bare <= len(ids) <= limit
        assert "The answer is 56 12. \nCheck." in text and text.count(RESPONSE) < 3
        message, message_cut = prompts.critique_message(QUESTION, RESPONSE * 3, "56 12", SOLUTION * 9)
        assert message_cut and tokenizer.chat_ids([{"role": "user", "content": message}]) == list(ids)
    room = make(tokenizer, len(make(tokenizer, **CHAINS).for_critique(QUESTION, RESPONSE, "56 12", "")[0]), **CHAINS)
    text = tokenizer.decode(room.for_critique(QUESTION, RESPONSE, "56 12", SOLUTION * 9)[0])
    assert f"Tried: {RESPONSE}\nThe answer is 56 12. " in text
    with pytest.raises(UserError, match="nothing left of its solution and response; critic.max_prompt_length is"):
        make(tokenizer, bare - 1, **CHAINS).for_critique(QUESTION, RESPONSE, "56 12", SOLUTION)
    with pytest.raises(UserError, match="nothing left of its response; critic.max_prompt_length is"):
        make(tokenizer, 9, **CHAINS).for_critique(QUESTION, RESPONSE, "56 12")


@pytest.mark.parametrize("name", ["question", "refine"])
def test_a_template_without_its_place_is_an_error(name):
    with pytest.raises(UserError, match="lacks {question}"):
        make(arithmetic_tokenizer(), **{name: "{response} {critique}"})


# --- the critique prompt for a model behind an endpoint -----------------------------------------------------------


@pytest.mark.parametrize("answer", [None, "56 12"])
def test_a_critique_message_is_the_turn_of_the_critique_prompt(template, answer):
    """At every limit it is cut as the prompt is: framed by the template it has the same tokens."""
    tokenizer, _ = template
    whole = len(make(tokenizer, **CHAINS).for_critique(QUESTION, RESPONSE * 3, answer)[0])
    for limit in (1000, whole, whole - 1, whole - 15):
        prompts = make(tokenizer, limit, **CHAINS)
        message, message_cut = prompts.critique_message(QUESTION, RESPONSE * 3, answer)
        ids, cut = prompts.for_critique(QUESTION, RESPONSE * 3, answer)
        assert message_cut == cut == (limit < whole)
        assert tokenizer.chat_ids([{"role": "user", "content": message}]) == list(ids)
        assert message.startswith(f"{QUESTION}\nTried: 7*8") and message.endswith("Check.")
        assert ("The answer is 56 12." in message) is (answer is not None)
        assert ("[...]" in message) is cut


def test_a_critique_message_leaves_the_system_turn_to_whoever_sends_it():
    message, _ = make(arithmetic_tokenizer(), system="=x=", **CHAINS).critique_message(QUESTION, RESPONSE, None)
    assert message == f"{QUESTION}\nTried: {RESPONSE}\nCheck."


# --- the question as it was asked, and the chat before it ---------------------------------------------------------

FORM = "{question}\nCheck."  # every character is known to the tokenizer of chains
CHAT = (("system", "=s="), ("user", "7*8"), ("assistant", "54"))


def test_the_refine_prompt_holds_the_question_as_it_was_asked(template):
    """What is trained is an answer to the question with its instructions on form."""
    tokenizer, _ = template
    prompts = make(tokenizer, question=FORM, **CHAINS)
    for critique in (CRITIQUE, None):
        ids, _ = prompts.for_refinement(QUESTION, RESPONSE, critique)
        assert f"{QUESTION}\nCheck.\nTried: {RESPONSE}" in tokenizer.decode(ids)
    for ids in (prompts.for_critique(QUESTION, RESPONSE, None)[0], prompts.for_critique(QUESTION, RESPONSE, "5")[0]):
        assert f"{QUESTION}\nTried: " in tokenizer.decode(ids)  # a critic judges an answer to the question itself


def test_a_question_with_braces_is_filled_once(template):
    tokenizer, _ = template
    ids, _ = make(tokenizer, question=FORM, **CHAINS).for_refinement("{response}{critique}", "{question}", "{answer}")
    text = tokenizer.decode(ids)
    assert "{response}{critique}\nCheck.\nTried: {question}\nCritique: {answer}" in text


def test_a_cut_refine_prompt_keeps_the_instructions_on_form(template):
    tokenizer, _ = template
    bare, _ = make(tokenizer, question=FORM, **CHAINS).for_refinement(QUESTION, "", CRITIQUE)
    ids, cut = make(tokenizer, len(bare) + 12, question=FORM, **CHAINS).for_refinement(QUESTION, RESPONSE * 9, CRITIQUE)
    assert cut and f"{QUESTION}\nCheck.\nTried: " in tokenizer.decode(ids)


def test_the_turns_of_a_chat_stand_before_the_question_and_before_the_refine_turn(template):
    """By token ids: the same beginning, and the same end, as the chat template makes of the whole chat."""
    tokenizer, _ = template
    prompts = make(tokenizer, question=FORM, **CHAINS)
    messages = [{"role": role, "content": text} for role, text in CHAT]
    asked = f"{QUESTION}\nCheck."
    whole = tokenizer.chat_ids([*messages, {"role": "user", "content": asked}])
    assert list(prompts.for_question(QUESTION, CHAT)) == whole
    refine = f"{asked}\nTried: {RESPONSE}\nCritique: {CRITIQUE}\nTry again."
    ids, cut = prompts.for_refinement(QUESTION, RESPONSE, CRITIQUE, CHAT)
    assert list(ids) == tokenizer.chat_ids([*messages, {"role": "user", "content": refine}]) and not cut
    assert len(whole) > len(prompts.for_question(QUESTION))
    prefix = tokenizer.generation_prefix_ids()
    assert tuple(whole[-len(prefix) :]) == tuple(ids[-len(prefix) :]) == prefix


def test_turns_are_never_cut_and_count_for_the_limit(template):
    tokenizer, _ = template
    bare, _ = make(tokenizer, **CHAINS).for_refinement(QUESTION, "", "", CHAT)
    ids, cut = make(tokenizer, len(bare) + 4, **CHAINS).for_refinement(QUESTION, RESPONSE, CRITIQUE, CHAT)
    assert cut and len(ids) <= len(bare) + 4 and "=s=" in tokenizer.decode(ids)
    with pytest.raises(UserError, match=f"needs {len(bare)} tokens with nothing left"):
        make(tokenizer, len(bare) - 1, **CHAINS).for_refinement(QUESTION, RESPONSE, CRITIQUE, CHAT)


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        ((), ["=x="]),
        (CHAT, ["=s="]),  # the chat's own stands in place of the configuration's
        (CHAT[1:], ["=x="]),
    ],
)
def test_which_system_turn_opens_a_prompt(template, turns, says):
    tokenizer, _ = template
    prompts = make(tokenizer, system="=x=", **CHAINS)
    for ids in (prompts.for_question(QUESTION, turns), prompts.for_refinement(QUESTION, RESPONSE, None, turns)[0]):
        assert [one for one in ("=x=", "=s=") if one in tokenizer.decode(ids)] == says


def sees_all(prompts):
    return prompts.for_refinement(QUESTION, RESPONSE, CRITIQUE)[0]


def test_a_refinement_and_a_teacher_may_see_the_critique_alone():
    template, tokenizer = "{question}\nCritique: {critique}\nTry again.", arithmetic_tokenizer()
    bare = make(tokenizer, **CHAINS | {"refine": template})
    ids, cut = bare.for_refinement(QUESTION, RESPONSE, CRITIQUE)
    assert not cut and tokenizer.decode(ids).endswith(f"{QUESTION}\nCritique: {CRITIQUE}\nTry again.")
    assert (bare.for_refinement(QUESTION, RESPONSE * 20, CRITIQUE)[0] == ids).all()
    short, cut = make(tokenizer, len(ids) - 4, **CHAINS | {"refine": template}).for_refinement(
        QUESTION, RESPONSE, CRITIQUE
    )
    assert cut and len(short) <= len(ids) - 4
    with_response = make(tokenizer, **CHAINS)
    np.testing.assert_array_equal(with_response.for_teacher(QUESTION, RESPONSE, CRITIQUE)[0], sees_all(with_response))
    teacher = make(tokenizer, **CHAINS | {"teacher": template})  # and no other prompt
    np.testing.assert_array_equal(teacher.for_teacher(QUESTION, RESPONSE, CRITIQUE)[0], ids)
    np.testing.assert_array_equal(sees_all(teacher), sees_all(with_response))
    assert RESPONSE in tokenizer.decode(with_response.for_refinement(QUESTION, RESPONSE, CRITIQUE)[0])
