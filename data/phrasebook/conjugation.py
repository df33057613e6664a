"""French verb forms: present, imperfect, future, past participle.

The five persons that the corpus speaks in are je, il, nous, vous and ils, in this order;
`tu` does not occur in it.
"""

import re
from functools import cache

VOWELS = "aeiouyàâéèêëîïôûùœ"

# infinitive: present (five forms) | past participle | future stem
IRREGULAR = {
    "aller": "vais va allons allez vont | allé | ir",
    "avoir": "ai a avons avez ont | eu | aur",
    "boire": "bois boit buvons buvez boivent | bu | boir",
    "connaître": "connais connaît connaissons connaissez connaissent | connu | connaîtr",
    "courir": "cours court courons courez courent | couru | courr",
    "croire": "crois croit croyons croyez croient | cru | croir",
    "cueillir": "cueille cueille cueillons cueillez cueillent | cueilli | cueiller",
    "devoir": "dois doit devons devez doivent | dû | devr",
    "dire": "dis dit disons dites disent | dit | dir",
    "dormir": "dors dort dormons dormez dorment | dormi | dormir",
    "endormir": "endors endort endormons endormez endorment | endormi | endormir",
    "envoyer": "envoie envoie envoyons envoyez envoient | envoyé | enverr",
    "faire": "fais fait faisons faites font | fait | fer",
    "lire": "lis lit lisons lisez lisent | lu | lir",
    "mentir": "mens ment mentons mentez mentent | menti | mentir",
    "mettre": "mets met mettons mettez mettent | mis | mettr",
    "mourir": "meurs meurt mourons mourez meurent | mort | mourr",
    "naître": "nais naît naissons naissez naissent | né | naîtr",
    "partir": "pars part partons partez partent | parti | partir",
    "peindre": "peins peint peignons peignez peignent | peint | peindr",
    "pleuvoir": "- pleut - - - | plu | pleuvr",
    "pouvoir": "peux peut pouvons pouvez peuvent | pu | pourr",
    "recevoir": "reçois reçoit recevons recevez reçoivent | reçu | recevr",
    "savoir": "sais sait savons savez savent | su | saur",
    "servir": "sers sert servons servez servent | servi | servir",
    "sortir": "sors sort sortons sortez sortent | sorti | sortir",
    "suivre": "suis suit suivons suivez suivent | suivi | suivr",
    "voir": "vois voit voyons voyez voient | vu | verr",
    "vouloir": "veux veut voulons voulez veulent | voulu | voudr",
    "être": "suis est sommes êtes sont | été | ser",
}
# verbs that go like one of the above, or like one another
FAMILIES = {
    "écrire": "écris écrit écrivons écrivez écrivent | écrit | écrir",
    "ouvrir": "ouvre ouvre ouvrons ouvrez ouvrent | ouvert | ouvrir",
    "prendre": "prends prend prenons prenez prennent | pris | prendr",
    "rire": "ris rit rions riez rient | ri | rir",
    "venir": "viens vient venons venez viennent | venu | viendr",
    "uire": "uis uit uisons uisez uisent | uit | uir",
}
FUTURE_ENDINGS = ("ai", "a", "ons", "ez", "ont")
IMPERFECT_ENDINGS = ("ais", "ait", "ions", "iez", "aient")


@cache
def present(infinitive: str) -> tuple[str, ...]:
    """The five forms of the present."""
    if listed := _listed(infinitive):
        return tuple(listed[0].split())
    stem, ending = infinitive[:-2], infinitive[-2:]
    if ending == "er":
        plural = {"g": stem + "e", "c": stem[:-1] + "ç"}.get(stem[-1], stem)
        strong = _stressed(stem)
        return (strong + "e", strong + "e", plural + "ons", stem + "ez", strong + "ent")
    if ending == "ir":
        return tuple(stem + tail for tail in ("is", "it", "issons", "issez", "issent"))
    return tuple(stem + tail for tail in ("s", "", "ons", "ez", "ent"))


@cache
def imperfect(infinitive: str) -> tuple[str, ...]:
    """The five forms of the imparfait."""
    stem = "ét" if infinitive == "être" else present(infinitive)[2].removesuffix("ons")
    soft = {"ge": stem[:-1], "ç": stem[:-1] + "c"}  # mangeait, mangions; commençait, commencions
    before_i = soft.get(stem[-2:], soft.get(stem[-1], stem))
    return tuple((before_i if ending[0] == "i" else stem) + ending for ending in IMPERFECT_ENDINGS)


@cache
def future(infinitive: str) -> tuple[str, ...]:
    """The five forms of the futur simple."""
    if listed := _listed(infinitive):
        stem = listed[2]
    elif infinitive.endswith("er") and not re.search(f"é[^{VOWELS}]+er$", infinitive):
        stem = _stressed(infinitive[:-2]) + "er"
    else:
        stem = infinitive.removesuffix("e")
    return tuple(stem + ending for ending in FUTURE_ENDINGS)


@cache
def participle(infinitive: str) -> str:
    """The past participle, masculine singular."""
    if listed := _listed(infinitive):
        return listed[1]
    return infinitive[:-2] + {"er": "é", "ir": "i", "re": "u"}[infinitive[-2:]]


def agree(word: str, *, feminine: bool, plural: bool) -> str:
    """A participle with the ending that gender and number ask for."""
    if feminine:
        word += "e"
    return word + "s" if plural and not word.endswith("s") else word


def _listed(infinitive: str) -> list[str] | None:
    if infinitive in IRREGULAR:
        return IRREGULAR[infinitive].split(" | ")
    for ending, row in FAMILIES.items():
        if infinitive.endswith(ending):
            prefix = infinitive.removesuffix(ending)
            return [" ".join(prefix + form for form in part.split()) for part in row.split(" | ")]
    return None


def _stressed(stem: str) -> str:
    """The stem of an -er verb before a mute e: achète, espère, appelle, nettoie."""
    if stem == "appel":
        return "appell"
    if stem[-1] == "y":
        return stem[:-1] + "i"
    return re.sub(f"[eé]([^{VOWELS}])$", r"è\1", stem)
