r"""Statements that name the letter of an answer: "The answer is most likely B", "option C is correct", "I choose (D)".

They are searched for in what `choice.plain` leaves of a text: one space between words. Only what stands near the last
letters that may be an option's is looked at, so that the time hardly depends on the text.
"""

import collections
import dataclasses
import re


def _either(words: str) -> str:
    """The pattern of any of some patterns, with ", " between."""
    return f"(?:{'|'.join(words.split(', '))})"


# --- letters ------------------------------------------------------------------------------------------------------

_END = r"(?![\w+#-]|'\w|\.[A-Za-z]\.)"
_REASON = r"(?:because|since|as|for|over|rather|instead)\b"
# "A" and "I" are words, too: before a common word, they are no letter of an option.
_NO_WORD = rf"(?! (?!{_REASON}|and\b|or\b)[a-z])"
_LETTER = (
    rf"(?:[(\[{{<] ?[A-Ja-j] ?[)\]}}>]|[B-HJ]{_END}|[AI]{_END}{_NO_WORD}"
    rf"|[a-j](?=[)\]\"'.,;:!<]| ?(?:\n|\Z)| {_REASON})(?!\.\w))"
)
_SUBJECT = rf"(?:[(\[] ?[A-Ja-j] ?[)\]]|[A-J]{_END})"  # a verb follows it
_CLOSING = r"[)\]}>\"']"
_OR = r"(?:[,/;&]|\b(?:or|and|nor|und|oder|et|ou|y|o)\b|[和或与與])"
_OPTION = f"(?i:{_either('option, choice, answer, alternative, letter')} )"
_ANOTHER = re.compile(
    rf"(?: |{_CLOSING}){{0,4}}{_OR}[ (\[{{<\"']{{0,4}}(?:(?:or|and|the) ){{0,2}}{_OPTION}?"
    rf"(?:[(\[] ?[A-Ja-j] ?[)\]]|[B-HJ]{_END}|[AI]{_END}{_NO_WORD})(?: ?{_OR} ?{_SUBJECT}){{0,4}}"
)

# --- denials ------------------------------------------------------------------------------------------------------

_WRONG = _either(
    "not, never, incorrect, wrong, false, invalid, impossible, eliminated, excluded, ruled out, nicht, falsch, pas, "
    "faux, fausse, incorrect[ao], incorrecte, errat[ao], errad[ao]"
)
_BEFORE_WRONG = _either("to be, also, clearly, obviously, definitely, therefore, thus, simply, the, an?")
_NEGATED = _either(
    r"(?:is|are|was|were|does|do|ca|wo)n't\b, cannot\b, can not\b, (?:does|did|do|may|should|could) not\b, "
    r"n'est pas\b, no es\b, non \xe8\b, n\xe3o \xe9\b, not (?:the )?(?:correct|right|true|valid|answer)\b, "
    r"(?:incorrect|wrong|false|invalid|eliminated|ruled out|falsch)\b, [项項]? ?[是]? ?(?:不(?![选選])|[错錯])"
)
_SEEMS = _either("is, are, was, were, would be, must be, seems, appears, looks, ist, est, es, è, é")
# Behind a letter: " is wrong", ": incorrect", " can't be right".
_REJECTED = re.compile(
    rf"[ )\]}}\"':,-]{{0,4}}(?:{_SEEMS} (?:{_BEFORE_WRONG} ){{0,3}}{_WRONG}\b|{_NEGATED})",
    re.IGNORECASE,
)
_OF_DOUBT = _either(
    "if, whether, suppose, assum(?:e|ing), unless, (?<!no )doubt, neither, nor, not, never, cannot, wrong, incorrect, "
    "worst, false, possible, following, candidate, available, other, another, previous, first, initial, original, "
    "instead of, rather than, without"
)
_DOUBTING = _either("think, believe, say, agree, mean, sure, true, the case, likely, clear, certain")
_BETWEEN = _either("that, the, correct, right, final, best, an?, only, just, simply, option, choice, answer")
# Before a statement: "if", "I don't think", "neither", "the wrong".
_DOUBTED = re.compile(
    rf"(?:(?:\b{_OF_DOUBT}|n't(?: {_DOUBTING})?|\bnot {_DOUBTING})(?: {_BETWEEN})*[\s\"'(\[:]*"
    r"|(?:没有?|[不未别勿非][能应要会可该]?))\Z",
    re.IGNORECASE,
)
_DOUBT_NEAR = 60  # characters before a statement that are looked at
_DENIAL = _either(
    "not, no, never, neither, nor, cannot, incorrect, wrong, false, eliminates?, excludes?, rules? out, except"
)
# A line with such a word names no answer by a letter in brackets alone.
DENYING = re.compile(rf"\b{_DENIAL}\b|n't\b", re.IGNORECASE)

# --- labels: the letter follows -----------------------------------------------------------------------------------

_GAP = r"(?:(?!(?<!\.)\.\s)[^\w!?]){0,12}"
_FILLER = _either(
    "l, most likely, most probably, likely, probably, definitely, clearly, therefore, thus, hence, then, so, indeed, "
    "simply, actually, obviously, certainly, really, still, also, in fact, of course, i think, i believe, it is, "
    "it's, to be, be, only, just, the, following, correct, right, best, final, one, is, in, given by, label+ed, "
    r"(?:not|nicht|pas|no|non) \(?[a-j]\)?,? (?:but|sondern|mais|sino|ma)(?: rather)?, rather, "
    "option, choice, answer, letter, statement, alternative, number, donc, la, le, "
    "el, il, die, der, lettre, letra, lettera, antwort, réponse, opción, opção, opzione, alternativa, respuesta, "
    "resposta, risposta, wohl, entonces, quindi, dunque, portanto, 选项, 選項, 選択肢, "
    r"(?-i:[ao])(?= (?:[(]?[A-J]\b|letra|alternativa|op))"
)
_NAMED = re.compile(rf"(?i:(?:{_GAP}\b{_FILLER}\b){{0,5}}{_GAP})(?P<letter>{_LETTER})")
_BE = _either(
    "is, are, was, (?:must|should|would|will|ha(?:s|ve) to|ought to|can only)(?: (?:then|therefore|thus|hence))? be, "
    "(?:(?:seems|appears|turns out|is likely|is going|proves) )?to be, remains, becomes"
)
_MARK = r" ?(?:[:=>\]{]|->|→|⇒|—|–|- )"
_OF_QUESTION = r"(?: here\b| that (?:best )?\w{1,20}(?: best)?\b| (?:to|for|of|in) (?:[\w#]{1,20} ){1,5}?)?"
_RIGHT = _either(
    "the, correct, right, best, final, only, remaining, accurate, appropriate, suitable, proper, valid, chosen, "
    r"selected, my, our, most \w{1,20}"
)
_CHOICES = _either(
    "(?:answer )?choice, option, letter, selection, alternative, statement, response, solution, pick, guess, one"
)
_LABELS = _either(
    "antwort, lösung, r[ée]ponse, respuesta, resposta, risposta, antwoord, svar(?:et)?, cevap, yanıt, odpowiedź, "
    "odpověď, jawaban, gabarito, вариант(?: ответа)?, "
    "câu trả lời, đáp án, vastaus, răspuns(?:ul)?, válasz, απάντηση, ответ, відповідь, الإجابة, الجواب, उत्तर, "
    "คำตอบ"
)
_ADJECTIVES = _either(
    "correcta?, correcte, exacte?, juste, final[ea]?, correta, certa, corretta, giusta, esatta, richtige, الصحيحة, "
    "đúng, yang (?:benar|tepat), "
    "ที่ถูกต้อง"
)
_OPTIONS = _either(
    "option, choix, lettre, opci[óo]n, op[çc][ãa]o, opzione, alternativa, letra, lettera, auswahl, möglichkeit, aussage"
)
_EST = _either(
    "est, es, ser[íi]a, ist, lautet, wäre, é, è, sarà, será, sera, serait, is, adalah, là, är, er, jest, je, to, هي, "
    "है, คือ"
)
_IS = rf"(?:{_MARK}| {_EST}(?!\w)|คือ)"
_NOT_BUT = r" (?:no es|n'est pas|non è|não é) (?:la |el |a )?[(]?[A-J][)]?,? (?:sino|mais|ma|mas)\b"
_LABEL = {
    # "The answer is", "Answer to question 3:", <answer>, "####".
    "answer": rf"(?<![/\w])(?:(?:final|correct|best|my)_)?answers?(?: (?:choice|option|letter|key))?{_OF_QUESTION}"
    rf"(?:(?:\s|(?<= )){_BE}\b|{_MARK}|'s\b)|####|(?<![/\w])ans ?[.:=>-]|(?<![^\n])correct ?[:=]",
    # "The correct option is", "My choice:", <option>.
    "option": rf"\b{_RIGHT} (?:{_RIGHT} )?{_CHOICES}{_OF_QUESTION}(?: ?{_BE}\b|{_MARK})"
    r"|(?<![/\w])(?:choice|option|selection|selected|prediction|solution) ?[:=>]|\bsolution is\b",
    "label": rf"(?<!\w){_LABELS}(?: {_ADJECTIVES}){{0,2}}(?: (?:donc|also|portanto|quindi))?{_IS}",
    "foreign": rf"\b(?:richtige|korrekte|bonne|meilleure) {_OPTIONS}{_IS}|\b{_OPTIONS} {_ADJECTIVES}{_IS}"
    rf"|\brichtig (?:ist|wäre)\b|(?<!\w){_LABELS}(?: {_ADJECTIVES})?{_NOT_BUT}",
    "han": r"(?:(?:正确|最终)?(?:答案|正解|答え|解答|回答|选项|選項)|정답|답|答) ?(?:应该|应当|应|就|只能|最可能)? ?"
    r"(?:(?:不是|并非) ?[A-J] ?,? ?而?是|是|为|為|应?选择?|應?選|は|、|:|은|는|=|\]) ?:? ?(?:选项|選項)?|正确的是"
    r"|(?:选择|選擇|选|選)(?![项項择擇])[了项]? ?:?",
}
_STATED = re.compile("|".join(_LABEL.values()), re.IGNORECASE)
_KEY = re.compile(
    r"[\"'](?!wrong|incorrect|false|other)(?:\w{1,20}[_ ])?"
    rf"{_either('answer, choice, option, selection, label, prediction, letter')}(?:[_ ]\w{{1,20}})?[\"'] ?:",
    re.IGNORECASE,
)

# --- verbs, and words that conclude: the letter ends its clause -----------------------------------------------------

_AND_SO_ON = _either("because, since, as, over, rather, instead, here, which, for this, from")
_STOP = rf"(?={_CLOSING}{{0,3}}(?:[.,;:!]| ?(?:\n|\Z)| [(–-]| {_AND_SO_ON}\b))"
_LAST = r"(?=[)\]\"'>.!]{0,4} ?(?:\n|\Z))"
_CHOOSE = _either(
    "choose, choosing, chose, pick(?:ed|ing)?, select(?:ed|ing)?, (?:go|going|went) with, opt for, settle on, say, "
    "guess, answer"
)
_MODAL = _either("would, will, am, are, have to, must, should, can, therefore, thus, then, hence, now, finally, simply")
_I = rf"\b(?:I|we)(?:'d|'ll|'m)? (?:{_MODAL} ){{0,3}}"
_SO = _either("so, thus, hence, therefore, then, let's, let us, and, must, should")
_FOREIGN_CHOOSE = _either(
    "ich wähle, wir wählen, je choisis, on choisit, elijo, elegimos, escolho, scelgo, выбираю, chọn"
)
_BECOMES = _either(
    "correspond(?:s|ing)? (?:to|with), match(?:es|ing)?, leads? (?:us )?to, points? to, is, it's, "
    "leav(?:es|ing)(?: us)?(?: with)?"
)
_LEAVES = r"leav(?:es|ing)(?: (?:us|me))?(?: with)?"
_CONCLUDING = r"(?:\b(?:so|thus|hence|therefore|consequently|accordingly)|=>|[→⇒∴])[,:]? ?"
_CHOSEN = re.compile(
    rf"(?i:(?:{_I}|(?:^|[.;:] |\b{_SO},? )){_CHOOSE} (?:the )?(?:correct )?{_OPTION}?)(?P<chosen>{_LETTER}){_STOP}"
    rf"|(?i:\b{_FOREIGN_CHOOSE} (?:(?:die |la |l')?(?:antwort|option|opción|đáp án) )?)(?P<foreign>{_LETTER})"
    rf"|(?i:\b{_BECOMES} (?:only )?(?:the )?(?:correct )?{_OPTION})(?P<matching>{_LETTER}){_STOP}"
    rf"|(?i:\b{_LEAVES} (?:only |just )?)(?P<left>{_LETTER}){_STOP}"
    rf"|(?i:{_CONCLUDING}(?:(?:it|that|this)(?:'s| is| must be) )?(?:the )?{_OPTION}?)(?P<concluded>{_LETTER}){_LAST}"
    rf"|(?i:\b(?:(?:it|that|this)(?:'s| is| (?:must|has to|should|would) be)|c'est(?: la)?(?: réponse| lettre)?) )"
    rf"(?P<it>{_LETTER}){_LAST}"
    rf"|(?i:\b(?:also|somit|daher|damit|folglich) (?:ist|wäre) (?:antwort |option )?)(?P<german>{_LETTER})"
    r"(?= (?:richtig|korrekt)\b)"
    rf"|^(?i:(?:the |my )?(?:final |correct |doğru |rätt )?(?:answer|final choice|{_LABELS})) "
    rf"(?P<bare>{_LETTER}){_LAST}",
    re.MULTILINE,
)

# --- a letter that is said to be right ----------------------------------------------------------------------------

_ARE = _either(
    "is, are, (?:must|should|would|has to|have to) be, (?:seems|appears) to be, seems, appears, looks, remains, ist, "
    "sind, wäre, est, sont, es, son, è, é"
)
_QUITE = _either(
    "also, both, most, likely, probably, definitely, clearly, therefore, thus, then, indeed, the, my, our, only, "
    "single, best, final, one, that is, die, der, la, le, el, il"
)
_CORRECT = _either(
    "correct[eao]?, accurate, appropriate, suitable, richtige?, korrekte?, juste, exacte?, bonne, corretta, correta, "
    r"giusta, right(?!-| (?:angle|triangle|side|hand|above|below|next|to|of|before|after)\b), best(?! \w+ed\b), "
    "(?<=the )(?:answer|choice|option|solution|one), (?<=(?:my|ur) )(?:final |best )?(?:answer|choice|pick), "
    "(?<=(?:best|rect|ight|inal|only) )(?:answer|choice|option)"
)
_LED_BY = _either(
    "la, le, so, thus, hence, therefore, that, think, believe, conclude, say, and, but, only, clearly, then, both, "
    "either, neither, option, choice, answer, alternative, letter, response, statement, antwort, aussage, réponse, "
    "opción, alternativa, opção, opzione, respuesta, resposta, risposta, now, is"
)
_HAN_RIGHT = r" ?(?:选?项|選?項)? ?[是为]? ?(?:正确|正確|对|對|正解)"
_RIGHT_IS = re.compile(
    rf"(?:^|[.,;:!?(\n>] ?|(?i:\b{_LED_BY} )|(?:选项|選項) ?)"
    rf"(?P<right>{_SUBJECT})(?P<more>(?:[ \"']?{_OR} ?(?:or |and )?{_OPTION}?{_SUBJECT}){{0,4}})"
    rf"(?:(?i: {_ARE}(?: {_QUITE}){{0,5}} (?:{_CORRECT}|(?P<true>true))\b(?! (?:only|if|when|unless|except)\b))"
    rf"|{_HAN_RIGHT})",
    re.MULTILINE,
)


# --- search -------------------------------------------------------------------------------------------------------

_CANDIDATE = re.compile(rf"(?<![^\W_])(?:[A-J](?!\w)|[a-j](?=[)\]}}>\"'.,;:!<]| ?(?:\n|\Z)| {_REASON}))")
_MOST, _NEAR = 100, 200  # candidates that are looked at, the last, and characters before one


@dataclasses.dataclass(frozen=True)
class Statement:
    """What a text says the answer is.

    Attributes:
      place: of its letter; for a key of JSON, where its object ends.
      letter: in upper case, None if it names several.
      weak: it says that a letter is right, which others may be, too.
    """

    place: int
    letter: str | None
    weak: bool = False


def last_statement(text: str) -> Statement | None:
    """The last statement of a text without markup, None if it has none."""
    key, last = _of_key(text), None
    for found in reversed(collections.deque(_CANDIDATE.finditer(text), maxlen=_MOST)):
        place = found.start()
        if last is None:
            if key is not None and place < key.place:
                return key
            last = _at(text, place)
            if last is not None and not last.weak:
                return last
        elif "\n" in text[place : last.place]:
            return last
        elif other := _at(text, place):  # "B is right and C is right"
            return dataclasses.replace(last, letter=None) if other.weak and other.letter != last.letter else last
    return last or key


def is_rejected(text: str, end: int) -> bool:
    """Does a text deny the letter that ends at a place in it?"""
    return _REJECTED.match(text, end) is not None


def names_another(text: str, end: int) -> bool:
    """Does a text go on with another letter behind one, as in "A or B"?"""
    another = _ANOTHER.match(text, end)
    return another is not None and not is_rejected(text, another.end())


def _of_key(text: str) -> Statement | None:
    """The last key for an answer in JSON. The other keys of its object say less."""
    for key in reversed(collections.deque(_KEY.finditer(text), maxlen=_MOST)):
        if (named := _NAMED.match(text, key.end())) and (one := _read(text, key.start(), named, "letter")):
            end = text.find("}", one.place)
            return dataclasses.replace(one, place=end if end >= 0 else len(text))
    return None


def _at(text: str, place: int) -> Statement | None:
    """The statement that names the letter at a place."""
    start = max(0, place - _NEAR)
    found = [
        (label.start(), _NAMED.match(text, label.end()), "letter") for label in _STATED.finditer(text, start, place)
    ]
    found += [(one.start(), one, one.lastgroup or "") for one in _CHOSEN.finditer(text, start, place + _NEAR)]
    for begin, named, group in reversed(found):
        if named is not None and _place(named, group) == place and (one := _read(text, begin, named, group)):
            return one
    for one in _RIGHT_IS.finditer(text, max(0, place - _DOUBT_NEAR), place + _NEAR):
        # Of statements that are no options, several may be true.
        is_option = not one["true"] or re.search(f"{_OPTION}$", one.group()[: one.start("right") - one.start()])
        if _place(one, "right") == place and is_option and not _is_doubted(text, one.start("right")):
            return Statement(place, None if one["more"] else _letter(one["right"]), weak=True)
    return None


def _read(text: str, start: int, named: re.Match, group: str) -> Statement | None:
    end = named.end(group)
    if _is_doubted(text, start) or is_rejected(text, end):
        return None
    return Statement(_place(named, group), None if names_another(text, end) else _letter(named[group]))


def _place(found: re.Match, group: str) -> int:
    return found.end(group) - len(found[group].lstrip("([{< "))


def _letter(found: str) -> str:
    return found.strip("()[]{}<> ").upper()


def _is_doubted(text: str, start: int) -> bool:
    return _DOUBTED.search(text[max(0, start - _DOUBT_NEAR) : start]) is not None
