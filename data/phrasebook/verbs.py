"""The verbs, with what they may be said of and with.

A row is English | French | subjects | objects | complements | flags. English is
base/past/gerund, the last two only where irregular, and a particle. French is an infinitive,
`*` if it takes être, the words that always follow it, and `>` before its preposition.
Complements are adverbs, places as `in:kitchen,garden`, and `with`, `without`, `for`, `town`, `to`,
`from`, `origin`, `sender`, `span`, `clock`, `year`, `during`.

Flags:
    n present only, o past only, p no past, f no present, x no future
    s no progressive, a present only of a habit
    h present and past look alike in English
    l may be weeks or years away, d is never hours away
    c never without a complement, r may have a recipient, t must have one
    g bare objects are generic, b a bare object has no article in French
    w no pronoun for its object
"""

from phrasebook.nouns import noun_keys
from phrasebook.words import Verb

TRANSITIVE = """
eat/ate | manger | person | food | in:kitchen,garden at:restaurant at_home slowly together with |
taste | goûter | person | food | in:kitchen at:restaurant at_home with |
swallow | avaler | person | food | in:kitchen quickly slowly |
refuse | refuser | person | dish staple gift ticket | at:restaurant |
drink/drank | boire | person | drink | in:kitchen,garden at:restaurant at_home with |
buy/bought | acheter | person | food drink ingredient clothes small_thing book newspaper novel\
 dictionary postcard wheeled bicycle boat instrument plant device furniture | at:market in:shop\
 for | l
sell/sold | vendre | person | wheeled bicycle boat device furniture instrument fruit vegetable\
 house plant\
 painting hat bread | at:market in:shop,street | l
read/read | lire | person | readable | in:garden,bedroom at:library at_home slowly | h
write/wrote | écrire | person | text sentence word | in:bedroom at:library at_home | rl
drive/drove | conduire | person | wheeled | slowly carefully quickly |
wear/wore | porter | person | clothes ring | |
carry | porter | person | suitcase box bag basket chair table ladder painting | |
push | pousser | person | wheeled bicycle suitcase box table chair armchair bed | slowly |
pull | tirer | person | suitcase box table carpet blanket boat | slowly |
move | déplacer | person | furniture lamp box basket bag ladder piano | carefully slowly |
wash | laver | person | clothes tableware car truck bicycle fruit dog horse | in:kitchen,garden |
clean | nettoyer | person | room house car window carpet shoe table bicycle | |
repair | réparer | person | device vehicle furniture roof door toy umbrella piano | outside | l
break/broke | casser | person | fragile toy umbrella phone | in:kitchen | a
open | ouvrir | person | openable letter gift umbrella | slowly quickly carefully |
close | fermer | person | openable umbrella book | slowly quickly carefully |
paint | peindre | person | wall door house boat chair roof bedroom kitchen flower tree | | l
draw/drew | dessiner | person | horse cat dog bird elephant flower tree castle map house boat | |
build/built | construire | person | house bridge boat wall school hospital castle hotel factory |\
 year | l
visit | visiter | person | museum castle church city village island farm factory university |\
 with | l
see/saw | voir | person | folk kin animal film castle bridge boat plane mountain sea | | s
hear/heard | entendre | person | song dog bird baby bee owl wolf train bus piano violin | | s
look at | regarder | person | painting sea mountain lake photo map storm animal flower folk | |
watch | regarder | person | film match child baby bird boat | with |
look for | chercher | person | oil sugar small_thing pet glove shoe hat ring hotel dictionary axe |\
 in:kitchen,street |
find/found | trouver | person | small_thing pet glove shoe ring hotel mistake\
 | in:garden,street,kitchen | al
lose/lost | perdre | person | small_thing glove hat ring match | in:street,park | al
forget/forgot/forgetting | oublier | person | small_thing coat hat word rule lesson meeting | | a
take/took | prendre | person | boarded umbrella photo key bag map suitcase | |
wait for | attendre | person | kin folk boarded letter | in:street outside at:station |
listen to | écouter | person | song radio story teacher singer concert musician | at_home |
meet/met | rencontrer | person | kin folk job | in:street,park at:market | al
know/knew | connaître | person | kin folk job city village song hotel rule restaurant | well | sn
call | appeler | person | parent kin doctor lawyer taxi engineer | |
help | aider | person | parent kin folk job | at_home |
thank | remercier | person | parent kin folk job | |
invite | inviter | person | kin folk teacher singer journalist | to:restaurant | l
follow | suivre | person | folk job animal car bus | slowly in:street,forest |
like | aimer | person | food drink language sport animal | a_lot | sgn
like | aimer | person | film concert song party trip soup cake novel house gift | | sf
love | adorer | person | food drink sport animal language | | sgn
love | adorer | person | film concert song wedding trip soup cake story garden | | sf
prefer/preferred/preferring | préférer | person | food drink sport language | | sgn
learn | apprendre | person | language poem song rule lesson word | quickly at:school | l
study | étudier | person | language lesson poem rule | at:university,library | l
understand/understood | comprendre | person | question lesson problem rule sentence word language\
 message | well | s
explain | expliquer | person | idea rule problem lesson word exercise mistake | | r
choose/chose | choisir | person | gift dress shirt book film hotel ring restaurant car | | l
finish | finir | person | book letter article exercise novel meal painting lesson | | l
begin/began/beginning | commencer | person | lesson exercise novel trip letter article meeting |\
 | l
prepare | préparer | person | meal soup salad rice fish cake sandwich trip exam party | for |
make/made | faire | person | cake sandwich mistake soup salad cookie | for |
cut/cut/cutting | couper | person | bread cheese cake apple meat tree flower | in:garden at_home\
 | h
serve | servir | person | drink dish meat fish rice cake meal | | r
send/sent | envoyer | person | letterlike photo gift article | | r
receive | recevoir | person | letterlike photo gift ring | sender | al
give/gave | donner | person | gift book key flower ring toy map cookie | | rt
tell/told | raconter | person | story | at:school in:bedroom | rw
photograph | photographier | person | mountain sea lake castle bridge bird horse storm island\
 butterfly forest | |
show | montrer | person | photo house painting map garden letter castle | | rt
lend/lent | prêter | person | book car bicycle umbrella pen dictionary coat suitcase | | rt
bring/brought | apporter | person | cake flower gift bread chair newspaper blanket wine salt\
 sugar oil | from:market,shop,kitchen,garden | r
translate | traduire | person | text sentence word | slowly at_home |
sing/sang | chanter | person | song | well badly |
cross | traverser | person | street bridge river field forest city island road valley tunnel park\
 | slowly quickly with |
leave/left | quitter | person | city village island beach farm hotel party meeting | early late | l
explore | explorer | person | forest valley island city castle tunnel mountain | slowly with |
avoid | éviter | person | street road market tunnel beach wolf bear exam meeting | |
plant | planter | person | tree flower rose potato bean tomato | in:garden,field | l
pick | cueillir | person | flower rose fruit | in:garden,field,forest |
share | partager | person | cake bread sandwich chocolate meal cookie | with |
hide/hid | cacher | person | key gift letter box photo ring toy wallet axe | in:garden,bedroom |
use | utiliser | person | computer dictionary tool phone knife ladder map spoon | | l
protect | protéger | person | city village forest child animal house | |
organize | organiser | person | party meeting wedding trip concert exam | at:school,university | l
pay/paid for | payer | person | ticket meal coffee taxi meat dress gift | |
win/won/winning | gagner | person | match | | al
feed/fed | nourrir | person | animal baby | in:garden |
have/had | avoir | person | pet wheeled bicycle boat device instrument sister brother daughter\
 son friend question idea problem small_thing house farm | | sp
need | avoir besoin >de | person | oil salt sugar rice tool drink device umbrella knife ladder\
 map car\
 key bread egg | | s
frighten | effrayer | person | animal child baby | |
stop/stopped/stopping | arrêter | person | wheeled bicycle train animal child | quickly |
surprise | surprendre | person | animal parent kin folk | in:garden,street |
attract | attirer | person | animal | |
interest | intéresser | person | child student journalist animal | | s
worry | inquiéter | person | parent kin animal | | s
bother | gêner | person | parent kin folk animal | | s
be afraid of | avoir peur >de | person | wolf bear mouse bee exam storm dog elephant owl | | sng
take/took care of | s'occuper >de | person | kin child baby animal garden | | w
remember | se souvenir >de | person | trip song story word film rule wedding lesson | | sw
answer | répondre >à | person | teacher journalist kin doctor child | quickly |
obey | obéir >à | child son daughter boy girl student | teacher mother father king rule | | s
talk to | parler >à | person | parent kin folk job | in:street,garden |
look like | ressembler >à | parent kin child boy girl | mother father sister brother uncle aunt |\
 | sn
think/thought of | penser >à | person | trip parent kin party exam wedding meeting | | w
play | jouer >de | person | instrument | well badly at:school in:bedroom with | w
play | jouer >à | person | sport | well badly in:park at:school with | wg
get/got/getting on | monter* >dans | person | boarded | quickly | w
get/got/getting off | descendre* >de | person | boarded | slowly | w
enter | entrer* >dans | person pet | building room forest | slowly quickly | w
speak/spoke | parler | person | language | well badly slowly at_home with | b
"""
INTRANSITIVE = """
sleep/slept | dormir | person baby animal | | well badly a_lot outside here in:bedroom,garden\
 on:bed span during |
work | travailler | person | | a_lot too_much here over_there together at:office,bank,hospital\
 in:garden town with span | l
dance | danser | person | | well badly together in:kitchen,street with |
swim/swam/swimming | nager | person dog duck | | well quickly slowly in:lake,sea,river with |
run/ran/running | courir | person horse dog | | quickly slowly in:park,street,forest |
laugh | rire | person baby | | a_lot too_much together during |
cry | pleurer | person baby | | a_lot too_much in:bedroom during |
smile | sourire | person baby | | |
walk | marcher | person horse elephant donkey | | slowly quickly together over_there\
 in:park,forest on:beach with |
travel | voyager | person | | a_lot together town with without span year | l
talk | parler | person | | too_much a_lot slowly during during with |
sing/sang | chanter | person bird | | well badly together outside in:garden,bathroom |
bark | aboyer | dog | | too_much a_lot in:street outside |
fly/flew | voler | bird bee butterfly owl duck plane | | quickly over_there in:garden,forest |
lie/lied/lying | mentir | child boy girl king son daughter lawyer | | a_lot too_much |
play | jouer | child boy girl dog cat | | outside together over_there here in:garden,park,street\
 with |
eat/ate | manger | person animal | | a_lot too_much well at:restaurant slowly without |
study | étudier | student child girl boy sister brother | | a_lot at:university,library town | l
succeed | réussir | person | | | a
get/got/getting up | se lever | person | | early late at_noon clock |
wake/woke up | se réveiller | person baby | | early late clock |
go/went to bed | se coucher | person | | early late at_midnight clock |
get/got/getting dressed | s'habiller | person | | quickly slowly in:bedroom,bathroom |
fall/fell asleep | s'endormir | person baby cat dog | | quickly in:armchair on:bed | a
rest | se reposer | person horse dog | | at_home in:garden,bedroom,armchair |
have/had fun | s'amuser | person | | at:beach in:park with |
get/got/getting married | se marier | sister brother daughter son king queen friend | | town year\
 in:castle,church | fl
go/went | aller* | person | | to | cl
come/came | venir* | person | | with without early late here clock |
come/came back | revenir* | person | | early late from from from clock | l
arrive | arriver* | person train bus plane taxi boat | | early late at:station,airport clock | l
leave/left | partir* | person train bus plane | | early late without clock | l
go/went out | sortir* | person cat dog | | together with without late |
stay | rester* | person | | at_home outside at:hotel,hospital in:bedroom here span | cl
fall/fell | tomber* | child boy girl baby horse lamp glass bottle | | in:street,kitchen on:carpet\
 | a
die | mourir* | king queen horse hero writer dog cat bird cow | | town year | ol
be born | naître* | baby child king queen writer hero | | town year | ocl
be hungry | avoir faim | person animal baby | | | sp
be thirsty | avoir soif | person animal baby | | | sp
be cold | avoir froid | person | | outside in:bedroom,street | sp
be right | avoir raison | person | | | sx
be wrong | avoir tort | person | | | sx
be late | être en retard | person train bus plane | | | sp
"""
# with an infinitive
MODAL = """
want | vouloir | | | | s
can/could | pouvoir | | | | s
must | devoir | | | | s
know/knew how | savoir | | | | sp
hope | espérer | | | | sn
begin/began/beginning | commencer >à | | | | l
try | essayer >de | | | |
forget/forgot/forgetting | oublier >de | | | | o
like | aimer | | | | sn
decide | décider >de | | | | o
learn | apprendre >à | | | | l
continue | continuer >à | | | |
"""
# with a clause
CLAUSAL = """
think/thought | penser | | | | sn
know/knew | savoir | | | | sn
say/said | dire | | | | sn
hope | espérer | | | | sn
believe | croire | | | | sn
"""
OTHER = """
be | être | | | | s
be there | avoir | | | | s
be old | avoir | | | | s
become/became | devenir* | person | | | ld
live | habiter | person | | town in:village,city,castle on:island here over_there together |\
 scld
cost/cost | coûter | | clothes device furniture instrument bicycle ticket book lamp | | snh
rain | pleuvoir | | | town | l
snow | neiger | | | town | l
be warm | faire chaud | | | | s
be cool | faire frais | | | | s
put/put/putting | mettre | person | small_thing tableware book letter newspaper novel dictionary\
 postcard | on:table,chair,bed in:bag,box,basket | hc
come/came | venir* | person | | origin | snc
"""


def _regular(base: str) -> tuple[str, str]:
    if base.endswith("e"):
        return base + "d", base + "ing" if base.endswith("ee") else base[:-1] + "ing"
    if base[-1] == "y" and base[-2] not in "aeiou":
        return base[:-1] + "ied", base + "ing"
    return base + "ed", base + "ing"


def _verb(row: str) -> Verb:
    english, french, subjects, objects, complements, flags = (
        cell.strip() for cell in row.split("|")
    )
    forms, _, particle = english.partition(" ")
    base, *irregular = forms.split("/")
    past, gerund = _regular(base)
    core, _, preposition = french.partition(" >")
    is_reflexive = core.startswith(("se ", "s'"))
    infinitive, _, tail = core.removeprefix("se ").removeprefix("s'").partition(" ")
    return Verb(
        key=f"{base} {particle}".strip(),
        base=base,
        past=irregular[0] if irregular else past,
        gerund=irregular[1] if len(irregular) > 1 else gerund,
        particle=particle,
        french=infinitive.removesuffix("*"),
        french_tail=tail,
        preposition=preposition,
        takes_etre=infinitive.endswith("*") or is_reflexive,
        is_reflexive=is_reflexive,
        subjects=noun_keys(subjects),
        objects=noun_keys(objects),
        complements=tuple(complement.replace("_", " ") for complement in complements.split()),
        flags=frozenset(flags),
    )


def _verbs(rows: str) -> tuple[Verb, ...]:
    return tuple(_verb(row) for row in rows.strip().split("\n"))


TRANSITIVES = _verbs(TRANSITIVE)
INTRANSITIVES = _verbs(INTRANSITIVE)
MODALS = {verb.key: verb for verb in _verbs(MODAL)}
CLAUSALS = {verb.key: verb for verb in _verbs(CLAUSAL)}
OTHERS = {verb.key: verb for verb in _verbs(OTHER)}
ALL_VERBS = (*TRANSITIVES, *INTRANSITIVES, *MODALS.values(), *CLAUSALS.values(), *OTHERS.values())
