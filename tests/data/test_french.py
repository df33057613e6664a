"""The French of the sample corpus, held against tables and rules written by hand."""

import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest

SIZES = ("train", "valid", "test", "combinations", "pronouns")
VOWEL = "aeiouyàâéèêëîïôûùœ"
Lines = Callable[[str], tuple[str, ...]]
# persons: je, il, nous, vous, ils
PRESENT = {
    "être": "suis est sommes êtes sont",
    "avoir": "ai a avons avez ont",
    "aller": "vais va allons allez vont",
    "faire": "fais fait faisons faites font",
    "dire": "dis dit disons dites disent",
    "venir": "viens vient venons venez viennent",
    "revenir": "reviens revient revenons revenez reviennent",
    "devenir": "deviens devient devenons devenez deviennent",
    "prendre": "prends prend prenons prenez prennent",
    "comprendre": "comprends comprend comprenons comprenez comprennent",
    "pouvoir": "peux peut pouvons pouvez peuvent",
    "vouloir": "veux veut voulons voulez veulent",
    "devoir": "dois doit devons devez doivent",
    "savoir": "sais sait savons savez savent",
    "voir": "vois voit voyons voyez voient",
    "croire": "crois croit croyons croyez croient",
    "boire": "bois boit buvons buvez boivent",
    "recevoir": "reçois reçoit recevons recevez reçoivent",
    "lire": "lis lit lisons lisez lisent",
    "écrire": "écris écrit écrivons écrivez écrivent",
    "rire": "ris rit rions riez rient",
    "mettre": "mets met mettons mettez mettent",
    "connaître": "connais connaît connaissons connaissez connaissent",
    "ouvrir": "ouvre ouvre ouvrons ouvrez ouvrent",
    "cueillir": "cueille cueille cueillons cueillez cueillent",
    "courir": "cours court courons courez courent",
    "dormir": "dors dort dormons dormez dorment",
    "sortir": "sors sort sortons sortez sortent",
    "servir": "sers sert servons servez servent",
    "peindre": "peins peint peignons peignez peignent",
    "conduire": "conduis conduit conduisons conduisez conduisent",
    "suivre": "suis suit suivons suivez suivent",
    "mourir": "meurs meurt mourons mourez meurent",
    "finir": "finis finit finissons finissez finissent",
    "vendre": "vends vend vendons vendez vendent",
    "manger": "mange mange mangeons mangez mangent",
    "commencer": "commence commence commençons commencez commencent",
    "acheter": "achète achète achetons achetez achètent",
    "espérer": "espère espère espérons espérez espèrent",
    "protéger": "protège protège protégeons protégez protègent",
    "appeler": "appelle appelle appelons appelez appellent",
    "envoyer": "envoie envoie envoyons envoyez envoient",
    "nettoyer": "nettoie nettoie nettoyons nettoyez nettoient",
    "payer": "paie paie payons payez paient",
    "oublier": "oublie oublie oublions oubliez oublient",
}
FUTURE = {
    "être": "serai", "avoir": "aurai", "aller": "irai", "faire": "ferai", "venir": "viendrai",
    "pouvoir": "pourrai", "vouloir": "voudrai", "devoir": "devrai", "savoir": "saurai",
    "voir": "verrai", "recevoir": "recevrai", "courir": "courrai", "mourir": "mourrai",
    "envoyer": "enverrai", "cueillir": "cueillerai", "prendre": "prendrai", "mettre": "mettrai",
    "acheter": "achèterai", "appeler": "appellerai", "espérer": "espérerai",
    "nettoyer": "nettoierai", "payer": "paierai", "lever": "lèverai", "finir": "finirai",
    "connaître": "connaîtrai", "écrire": "écrirai", "oublier": "oublierai",
}  # fmt: skip
IMPERFECT = {
    "être": "étais était étions étiez étaient",
    "manger": "mangeais mangeait mangions mangiez mangeaient",
    "commencer": "commençais commençait commencions commenciez commençaient",
    "finir": "finissais finissait finissions finissiez finissaient",
    "boire": "buvais buvait buvions buviez buvaient",
}
PARTICIPLE = {
    "être": "été", "avoir": "eu", "aller": "allé", "faire": "fait", "dire": "dit",
    "venir": "venu", "prendre": "pris", "apprendre": "appris", "pouvoir": "pu", "vouloir": "voulu",
    "devoir": "dû", "savoir": "su", "voir": "vu", "croire": "cru", "boire": "bu",
    "recevoir": "reçu", "lire": "lu", "écrire": "écrit", "rire": "ri", "mettre": "mis",
    "connaître": "connu", "ouvrir": "ouvert", "cueillir": "cueilli", "courir": "couru",
    "mourir": "mort", "naître": "né", "peindre": "peint", "conduire": "conduit", "suivre": "suivi",
    "descendre": "descendu", "répondre": "répondu", "pleuvoir": "plu", "choisir": "choisi",
}  # fmt: skip
# masculine singular and plural, feminine singular and plural
ADJECTIVES = {
    "beautiful": "beau beaux belle belles",
    "old": "vieux vieux vieille vieilles",
    "new": "nouveau nouveaux nouvelle nouvelles",
    "white": "blanc blancs blanche blanches",
    "fresh": "frais frais fraîche fraîches",
    "dry": "sec secs sèche sèches",
    "soft": "doux doux douce douces",
    "long": "long longs longue longues",
    "fat": "gros gros grosse grosses",
    "good": "bon bons bonne bonnes",
    "kind": "gentil gentils gentille gentilles",
    "jealous": "jaloux jaloux jalouse jalouses",
    "happy": "heureux heureux heureuse heureuses",
    "proud": "fier fiers fière fières",
    "expensive": "cher chers chère chères",
    "light": "léger légers légère légères",
    "Italian": "italien italiens italienne italiennes",
    "brown": "marron marron marron marron",
    "gray": "gris gris grise grises",
    "thick": "épais épais épaisse épaisses",
    "bitter": "amer amers amère amères",
    "muddy": "boueux boueux boueuse boueuses",
    "red": "rouge rouges rouge rouges",
}


@pytest.mark.parametrize("infinitive", PRESENT)
def test_present_is_as_in_the_grammar_book(project: SimpleNamespace, infinitive: str) -> None:
    assert " ".join(project.conjugation.present(infinitive)) == PRESENT[infinitive]


@pytest.mark.parametrize("infinitive", IMPERFECT)
def test_imperfect_is_as_in_the_grammar_book(project: SimpleNamespace, infinitive: str) -> None:
    assert " ".join(project.conjugation.imperfect(infinitive)) == IMPERFECT[infinitive]


@pytest.mark.parametrize("infinitive", FUTURE)
def test_future_is_as_in_the_grammar_book(project: SimpleNamespace, infinitive: str) -> None:
    stem = FUTURE[infinitive].removesuffix("ai")

    forms = project.conjugation.future(infinitive)

    assert forms == tuple(stem + ending for ending in ("ai", "a", "ons", "ez", "ont"))


@pytest.mark.parametrize("infinitive", PARTICIPLE)
def test_participle_is_as_in_the_grammar_book(project: SimpleNamespace, infinitive: str) -> None:
    assert project.conjugation.participle(infinitive) == PARTICIPLE[infinitive]


@pytest.mark.parametrize("key", ADJECTIVES)
def test_adjective_is_as_in_the_grammar_book(project: SimpleNamespace, key: str) -> None:
    adjective = project.modifiers.ADJECTIVES[key]

    assert " ".join((*adjective.masculine, *adjective.feminine)) == ADJECTIVES[key]


@pytest.mark.parametrize(
    ("words_before", "written"),
    [
        ("le hôtel", "l'hôtel"),
        ("le *hibou", "le *hibou"),
        ("de *huit euros", "de *huit euros"),
        ("je ne y vois que elle", "je n'y vois qu'elle"),
        ("si il te aime", "s'il t'aime"),
        ("si elle se endort", "si elle s'endort"),
        ("de Alice", "d'Alice"),
        ("la école", "l'école"),
        ("de œufs", "d'œufs"),
        ("que un", "qu'un"),
    ],
)
def test_elision(project: SimpleNamespace, words_before: str, written: str) -> None:
    assert " ".join(project.orthography.elide(words_before.split())) == written


@pytest.mark.parametrize(
    ("preposition", "phrase", "written"),
    [
        ("à", "le marché", "au marché"),
        ("à", "le hôpital", "à le hôpital"),  # elision makes it à l'hôpital
        ("à", "les enfants", "aux enfants"),
        ("près de", "le lac", "près du lac"),
        ("de", "les *héros", "des *héros"),
        ("de", "le *héros", "du *héros"),
        ("à", "la plage", "à la plage"),
    ],
)
def test_contraction(project: SimpleNamespace, preposition: str, phrase: str, written: str) -> None:
    assert " ".join(project.orthography.contract(preposition, phrase.split())) == written


@pytest.mark.parametrize(
    "wrong",
    [
        rf"\b(je|me|te|se|le|la|ne|de|que) (?!onze)[{VOWEL}]",
        r"\b(je|me|te|se|le|la|ne|de|que) h(ôtel|ôpital|omme|orloge|uile|istoire|abit|eure)",
        r"\b([jlmnstd]|qu)'h(?!ôtel|ôpit|omme|orloge|uile|istoire|abi|eure|iver)",
        rf"\b([jlmnstd]|qu)'[^h{VOWEL}]",
        rf"\b(ma|sa) [{VOWEL}]",
        rf"\b(?<!-)ce [{VOWEL}]",
        r"\bcet [bcdfgjklmnpqrstvwxz]",
        r"\bsi ils?\b",
        # a contraction is missing, unless it is a pronoun before an infinitive
        r"\b(à|de) les? (?!\w+(er|ir|re)\b)",
        r"\b(à|de) (aux?|du|des)\b",
        rf"\b(un|le|ce|mon|son|notre|votre|leur) (beau|nouveau|vieux) [{VOWEL}]",
        r"\b(une|la|cette|ma|sa) (petit|grand|beau|vieux|nouveau|bon|long|gros|premier)\b(?!-)",
        r"\b(un|le|ce) (petite|grande|belle|vieille|nouvelle|bonne|longue|grosse|mauvaise)\b",
        r"\b(y a|acheté|vendu|vu) des (petit|grand|beau|belle|vieu|vieille|bon|long|joli|jeune)",
        r"\bpas (acheté|bu|mangé|vendu|lu|écrit|fait|coupé) (des|du|une?|de la|de l')\b",
        r"[aeiou]-(il|elle)\b",
        r"\bvous (?:êtes|avez été) (?:\w+ )?(heureuse|fatiguée|content?es|fatigués|tristes)\b",
        r"\bbeaucoup (des|du)\b",
        r"\b(?!nous|vous)(\w+) \1\b",
    ],
)
def test_french_has_no(wrong: str, read_lines: Lines) -> None:
    text = "\n".join(line.lower() for name in SIZES for line in read_lines(f"{name}.fr"))
    actual = [text[one.start() - 20 : one.end() + 20] for one in re.finditer(wrong, text)]

    assert actual == []
