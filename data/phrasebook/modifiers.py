"""Adjectives, adverbs, names, places, numbers and small words.

In the tables `_` is a space inside a word, and `|` separates English, French and what else there
is to say. French adjectives are masculine/feminine/masculine-before-a-vowel, the last two only
where the rules do not give them.
"""

from typing import Literal

from phrasebook.nouns import noun_keys
from phrasebook.words import (
    Adjective,
    Adverb,
    Conjunction,
    Degree,
    Forms,
    Gender,
    Name,
    Number,
    Place,
    Preposition,
    Tense,
)

# English | comparative, - for none | French | nouns that it may stand with
ADJECTIVE_ROWS: dict[Literal["before", "after", "predicate"], str] = {
    "before": """
big | bigger | grand | pet horse bear vehicle building room garden city forest tree box bag
small | smaller | petit | pet wild_animal vehicle building room garden furniture small_thing
old | older | vieux/vieille/vieil | man woman friend king queen neighbor teacher doctor farmer\
 building vehicle clothes device furniture tree pet
young | younger | jeune | folk job horse dog cat
new | - | nouveau/nouvelle/nouvel | vehicle clothes device furniture instrument book song film\
 neighbor teacher colleague uniform
beautiful | more_beautiful | beau/belle/bel | woman horse bird butterfly flower city house castle\
 island garden song dress painting hotel church ring lake tree
pretty | prettier | joli | dress skirt village flower rose ring song garden house scarf girl
good | - | bon/bonne | food drink film book restaurant hotel job idea story
bad | - | mauvais | film book restaurant hotel idea coffee song
long | longer | long/longue | letter story novel film trip river street dress sentence meeting road\
 beach bridge path tunnel
fat | fatter | gros/grosse | cat dog rabbit mouse cow hen donkey goat goose frog
first | - | premier | lesson train bus exercise question exam letter word song novel ticket
last | - | dernier | lesson train bus exercise question cookie plane ticket letter word
""",
    "after": """
black | - | noir | colorable cat dog horse cow hen bird
white | - | blanc/blanche | colorable cat dog horse rabbit hen cow mouse house wine
red | - | rouge | colorable tractor bus boat apple wine
blue | - | bleu | colorable bird boat butterfly vehicle
green | - | vert | colorable apple plant tractor
yellow | - | jaune | colorable bus butterfly taxi
gray | - | gris | clothes cat mouse donkey horse wolf carpet wall
brown | - | marron/marron | clothes bear horse dog cow furniture bag
Italian | - | italien | car film restaurant song wine cheese cake novel singer writer
English | - | anglais | book novel car song newspaper dictionary film tea writer
Spanish | - | espagnol | film song restaurant novel wine soup orange singer
expensive | more_expensive | cher | clothes device vehicle furniture hotel restaurant instrument
heavy | heavier | lourd | suitcase box bag table bed armchair basket book
light | lighter | léger | suitcase box bag chair coat bicycle basket
fast | faster | rapide | car bicycle train boat plane horse truck dog
slow | slower | lent | train bus boat computer tractor animal
clean | cleaner | propre | clothes tableware car kitchen bedroom bathroom window
dirty | dirtier | sale | clothes tableware car kitchen bedroom window carpet dog wall
hot | hotter | chaud | soup coffee tea milk water bread
cold | colder | froid | soup coffee tea milk water beer
fresh | - | frais/fraîche | bread fish milk fruit vegetable egg butter
delicious | - | délicieux | food drink
round | - | rond | table box mirror carpet basket window
modern | more_modern | moderne | building kitchen bathroom city bridge painting
famous | more_famous | célèbre | museum castle painting song novel writer singer musician
interesting | more_interesting | intéressant | show readable lesson museum trip idea meeting city
boring | more_boring | ennuyeux | film concert novel meeting trip lesson article book party
funny | funnier | drôle | film story song boy girl uncle friend
difficult | more_difficult | difficile | question lesson word problem sentence exercise exam
easy | easier | facile | question lesson word problem sentence exercise exam
dangerous | more_dangerous | dangereux | wolf bear river mountain tool bridge trip street
useful | more_useful | utile | tool dictionary map computer umbrella phone ladder idea
comfortable | more_comfortable | confortable | chair bed armchair shoe house hotel train car
quiet | quieter | calme | street village house hotel city park restaurant beach
empty | - | vide | bottle glass cup box basket bag street bus house
full | fuller | plein | bottle glass cup box basket bag suitcase bus
broken | - | cassé | device glass cup chair plate bicycle toy window mirror umbrella
wet | - | mouillé | clothes umbrella dog cat street blanket
dry | - | sec/sèche | clothes field river blanket
soft | softer | doux/douce | blanket sweater scarf bed armchair
important | more_important | important | meeting letter question rule message word lesson exam
elegant | more_elegant | élégant | clothes woman man hotel
rich | richer | riche | man woman king queen neighbor uncle aunt lawyer singer
poor | poorer | pauvre | man woman student farmer musician neighbor writer
polite | more_polite | poli | child boy girl student neighbor guest
kind | kinder | gentil/gentille | neighbor aunt uncle man woman girl boy teacher doctor nurse
shy | shyer | timide | child boy girl student sister brother friend animal
brave | braver | courageux | man woman child hero king pilot queen
lazy | lazier | paresseux | student boy son brother colleague animal
strong | stronger | fort | man horse bear donkey farmer hero
weak | weaker | faible | child baby animal
clumsy | clumsier | maladroit | child boy girl brother animal
wide | wider | large | street road river valley field bridge path lake tunnel
narrow | narrower | étroit | street road valley bridge path tunnel
deep | deeper | profond | river valley forest sea lake tunnel
dark | darker | sombre | street forest valley path tunnel park
muddy | muddier | boueux | street road river field path garden park
steep | steeper | raide | street road mountain path bridge
crowded | more_crowded | bondé | street beach city market park village
noisy | noisier | bruyant | street city road market park village tunnel
salty | saltier | salé | soup salad meat cheese rice egg sandwich
bitter | more_bitter | amer | orange salad cherry lemon mushroom chocolate
sour | more_sour | acide | apple orange strawberry tomato cherry lemon melon cheese
sweet | sweeter | sucré | pear banana orange jam melon cake cookie chocolate
hard | harder | dur | pear carrot apple meat bread cookie cheese
spicy | spicier | épicé | soup salad meat rice sandwich bean
rotten | - | pourri | tomato pear banana potato egg mushroom lemon
fragile | more_fragile | fragile | lamp bottle plate cup mirror glass toy basket
thick | thicker | épais/épaisse | blanket scarf door carpet sweater book coat
bulky | bulkier | encombrant | suitcase box ladder table armchair basket carpet bag
solid | more_solid | solide | table chair box ladder basket bag wall toy
""",
    "predicate": """
happy | happier | heureux | person
tired | more_tired | fatigué | person animal
sick | sicker | malade | person baby animal
sad | sadder | triste | person animal
tall | taller | grand | person
proud | prouder | fier | person
jealous | more_jealous | jaloux/jalouse | person
ready | - | prêt | person
nervous | more_nervous | nerveux | person animal
curious | more_curious | curieux | person animal
closed | - | fermé | shop museum bank library door window restaurant office
open | - | ouvert | shop museum bank library door window restaurant office church
""",
}
# English | French | tenses: first letters | h for a habit
ADVERB_ROWS: dict[Literal["often", "well", "end", "time"], str] = {
    "often": """
often | souvent | p | h
always | toujours | p | h
sometimes | parfois | p | h
rarely | rarement | p | h
also | aussi | paf
already | déjà | a
""",
    "well": """
well | bien | paf
badly | mal | paf
a lot | beaucoup | paf
too much | trop | paf
""",
    "end": """
slowly | lentement | paf
quickly | rapidement | paf
carefully | prudemment | paf
together | ensemble | paf
early | tôt | paf
late | tard | paf
here | ici | paf
over there | là-bas | paf
outside | dehors | paf
at home | à la maison | paf
""",
    "time": """
now | maintenant | p
today | aujourd'hui | paf
every day | tous les jours | p | h
every morning | tous les matins | p | h
every summer | tous les étés | p | h
on Sundays | le dimanche | p | h
on Saturdays | le samedi | p | h
in winter | en hiver | p | h
in spring | au printemps | p | h
at noon | à midi | paf
at midnight | à minuit | paf
yesterday | hier | a
last night | hier soir | a
last week | la semaine dernière | a
last year | l'année dernière | a
last summer | l'été dernier | a
last month | le mois dernier | a
this morning | ce matin | a
tomorrow | demain | f
tonight | ce soir | f
soon | bientôt | f
next week | la semaine prochaine | f
next year | l'année prochaine | f
next month | le mois prochain | f
on Monday | lundi | af
on Tuesday | mardi | af
on Friday | vendredi | af
in January | en janvier | af
in April | en avril | af
in August | en août | af
in October | en octobre | af
""",
}
WOMEN = "Alice Marie Emma Sophie Julie Anna Claire Laura"
MEN = "Paul Louis Arthur Thomas Oscar Nicolas Victor Simon"
PLACES = """
Paris = Paris, London = Londres, Rome = Rome, Lyon = Lyon, Berlin = Berlin, Madrid = Madrid,
Brussels = Bruxelles, Geneva = Genève, Athens = Athènes, Lisbon = Lisbonne, France = France la,
Italy = Italie la, Spain = Espagne la, Canada = Canada le, Japan = Japon le,
Germany = Allemagne la, Portugal = Portugal le, Belgium = Belgique la, Ireland = Irlande la,
the United States = États-Unis les
"""
NUMBER_WORDS = """
two deux, three trois, four quatre, five cinq, six six, seven sept, eight *huit, nine neuf, ten dix,
eleven *onze, twelve douze, thirteen treize, fourteen quatorze, fifteen quinze, sixteen seize,
seventeen dix-sept, eighteen dix-huit, nineteen dix-neuf, twenty vingt, thirty trente,
forty quarante, fifty cinquante
"""
PREPOSITIONS = """
in = dans, at = à, on = sur, under = sous, behind = derrière, in front of = devant, near = près de,
next to = à côté de, to = à, from = de, with = avec, for = pour, without = sans, after = après,
before = avant, during = pendant
"""
CONJUNCTIONS = (
    "and = et, but = mais, or = ou, because = parce que, when = quand, if = si, so = donc"
)
DEGREES = "very = très, too = trop, so = si"
TIMES: dict[str, Tense] = {"p": "present", "a": "past", "f": "future"}


def _spaced(text: str) -> str:
    return text.strip().replace("_", " ")


def _pairs(rows: str) -> list[tuple[str, str]]:
    cells = (row.split(" = ") for row in " ".join(rows.split()).split(", "))
    return [(english, french) for english, french in cells]


def feminine_form(masculine: str) -> str:
    """The feminine that the rules give: cher, chère; fier, fière; heureux, heureuse."""
    for ending, feminine in {"eux": "euse", "er": "ère", "ien": "ienne", "e": "e"}.items():
        if masculine.endswith(ending):
            return masculine.removesuffix(ending) + feminine
    return masculine + "e"


def plural_form(masculine: str) -> str:
    """The masculine plural that the rules give: beau, beaux; gris, gris."""
    if masculine.endswith(("s", "x")):
        return masculine
    return masculine + ("x" if masculine.endswith("eau") else "s")


def _adjective(row: str, position: Literal["before", "after", "predicate"]) -> Adjective:
    english, comparative, french, nouns = row.split(" | ")
    masculine, *rest = french.split("/")
    feminine = rest[0] if rest else feminine_form(masculine)
    is_fixed = masculine == feminine and masculine[-1] != "e"  # marron
    masculines: Forms = masculine, masculine if is_fixed else plural_form(masculine)
    return Adjective(
        key=english,
        comparative=_spaced(comparative.replace("-", "")),
        masculine=masculines,
        feminine=masculines if is_fixed else (feminine, feminine + "s"),
        before_vowel=rest[1] if len(rest) > 1 else masculine,
        position=position,
        nouns=noun_keys(nouns),
    )


def _adverb(row: str, position: Literal["often", "well", "end", "time"]) -> Adverb:
    english, french, letters, *habit = row.split(" | ")
    times = tuple(TIMES[letter] for letter in letters)
    return Adverb(english, french, position, times, bool(habit))


def _place(english: str, french: str) -> Place:
    name, _, article = french.partition(" ")
    return Place(english, name, article)


def _names() -> dict[str, Name]:
    genders: list[tuple[str, Gender]] = [(WOMEN, "f"), (MEN, "m")]
    return {key: Name(key, gender) for keys, gender in genders for key in keys.split()}


ADJECTIVES = {
    adjective.key: adjective
    for position, rows in ADJECTIVE_ROWS.items()
    for adjective in (_adjective(row, position) for row in rows.strip().split("\n"))
}
ADVERBS = {
    adverb.key: adverb
    for placement, rows in ADVERB_ROWS.items()
    for adverb in (_adverb(row, placement) for row in rows.strip().split("\n"))
}
NAMES = _names()
PLACE_NAMES = {key: _place(key, french) for key, french in _pairs(PLACES)}
NUMBERS = {
    english: Number(english, french)
    for english, french in (row.split() for row in " ".join(NUMBER_WORDS.split()).split(", "))
}
PREPOSITION_WORDS = {key: Preposition(key, french) for key, french in _pairs(PREPOSITIONS)}
CONJUNCTION_WORDS = {key: Conjunction(key, french) for key, french in _pairs(CONJUNCTIONS)}
DEGREE_WORDS = {key: Degree(key, french) for key, french in _pairs(DEGREES)}


def adjectives(keys: str) -> tuple[Adjective, ...]:
    """The adjectives by these keys, in this order."""
    return tuple(ADJECTIVES[key] for key in keys.split())
