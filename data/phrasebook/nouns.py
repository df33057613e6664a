"""The nouns, by group, and the sets that verbs and adjectives choose them from.

A row is `english = french gender`; irregular plurals follow a slash, `*` marks an aspirated h,
a profession's feminine follows a colon, and `_` is a space inside a word.
"""

from functools import cache

from phrasebook.words import Forms, Gender, Noun

GROUPS = {
    "parent": """mother = mère f, father = père m, grandmother = grand-mère/grands-mères f,
        grandfather = grand-père/grands-pères m, boss = patron m""",
    "kin": """sister = sœur f, brother = frère m, friend = ami m, aunt = tante f, uncle = oncle m,
        neighbor = voisin m, daughter = fille f, son = fils m, colleague = collègue m""",
    "folk": """woman/women = femme f, man/men = homme m, girl = fille f, boy = garçon m,
        child/children = enfant m, guest = invité m, queen = reine f 1, king = roi m 1,
        hero = *héros m""",
    "job": """teacher = professeur:professeure m, doctor = médecin:médecin m,
        student = étudiant:étudiante m, nurse = infirmier:infirmière m,
        baker = boulanger:boulangère m, lawyer = avocat:avocate m,
        farmer = agriculteur:agricultrice m, musician = musicien:musicienne m,
        singer = chanteur:chanteuse m, writer = écrivain:écrivaine m,
        engineer = ingénieur:ingénieure m, journalist = journaliste:journaliste m,
        pilot = pilote:pilote m""",
    "baby": "baby = bébé m",
    "pet": "dog = chien m, cat = chat m, rabbit = lapin m, hamster = *hamster m",
    "farm_animal": """horse = cheval m, cow = vache f, hen = poule f, duck = canard m,
        donkey = âne m, goat = chèvre f, goose/geese = oie f""",
    "wild_animal": """bird = oiseau m, mouse/mice = souris f, wolf/wolves = loup m, bear = ours m,
        owl = *hibou/hiboux m, elephant = éléphant m, hedgehog = *hérisson m,
        butterfly = papillon m, bee = abeille f, frog = grenouille f, turtle = tortue f,
        giraffe = girafe f, spider = araignée f, ant = fourmi f, animal = animal m""",
    "fruit": """apple = pomme f, orange = orange f, pear = poire f, banana = banane f,
        cherry = cerise f, strawberry = fraise f, lemon = citron m, melon = melon m""",
    "vegetable": """tomato = tomate f, carrot = carotte f, mushroom = champignon m,
        potato = pomme_de_terre/pommes_de_terre f, bean = *haricot m""",
    "snack": "egg = œuf m, cake = gâteau m, sandwich = sandwich m, cookie = biscuit m",
    "staple": """bread = pain m -, cheese = fromage m -, meat = viande f -, rice = riz m -,
        chocolate = chocolat m -, fish = poisson m -, butter = beurre m -, jam = confiture f -""",
    "ingredient": "sugar = sucre m -, salt = sel m -, oil = huile f -",
    "dish": "soup = soupe f -, salad = salade f -, ice_cream = glace f -",
    "drink": """water = eau f -, coffee = café m -, tea = thé m -, milk = lait m -, wine = vin m -,
        beer = bière f -""",
    "meal": "dinner = dîner m 1, lunch = déjeuner m 1, breakfast = petit_déjeuner m 1",
    "readable": """book = livre m, letter = lettre f, newspaper = journal m, novel = roman m,
        story = histoire f, poem = poème m, article = article m, message = message m,
        postcard = carte_postale/cartes_postales f, dictionary = dictionnaire m""",
    "study": """question = question f, lesson = leçon f, word = mot m, problem = problème m,
        sentence = phrase f, exercise = exercice m, rule = règle f, mistake = erreur f""",
    "thought": "idea = idée f",
    "language": """English = anglais m 1, French = français m 1, Italian = italien m 1,
        Spanish = espagnol m 1""",
    "show": "film = film m, song = chanson f, concert = concert m, match = match m",
    "event": """party = fête f, trip = voyage m, meeting = réunion f, exam = examen m,
        wedding = mariage m, accident = accident m, storm = orage m""",
    "vehicle": """car = voiture f, bicycle = vélo m, train = train m, bus = bus m, boat = bateau m,
        truck = camion m, plane = avion m, taxi = taxi m, tractor = tracteur m""",
    "clothes": """hat = chapeau m, coat = manteau m, shirt = chemise f, dress = robe f,
        shoe = chaussure f, sweater = pull m, skirt = jupe f, glove = gant m,
        scarf/scarves = écharpe f, uniform = uniforme m""",
    "tableware": """glass = verre m, cup = tasse f, plate = assiette f, bottle = bouteille f,
        knife/knives = couteau m, spoon = cuillère f""",
    "device": """phone = téléphone m, computer = ordinateur m, clock = horloge f, lamp = lampe f,
        camera = appareil_photo/appareils_photo m, radio = radio f""",
    "furniture": """table = table f, chair = chaise f, bed = lit m, armchair = fauteuil m,
        mirror = miroir m, carpet = tapis m""",
    "small_thing": """key = clé f, bag = sac m, box = boîte f, umbrella = parapluie m,
        gift = cadeau m, ticket = billet m, photo = photo f, map = carte f, pen = stylo m,
        ball = ballon m, suitcase = valise f, basket = panier m, toy = jouet m,
        wallet = portefeuille m, ring = bague f, painting = tableau m, candle = bougie f,
        blanket = couverture f""",
    "tool": "tool = outil m, ladder = échelle f, axe = *hache f",
    "instrument": """piano = piano m, guitar = guitare f, violin = violon m,
        accordion = accordéon m, harp = *harpe f""",
    "sport": "football = football m 1, tennis = tennis m 1, cards = cartes f 2, chess = échecs m 2",
    "plant": "flower = fleur f, tree = arbre m, rose = rose f",
    "part": "door = porte f, window = fenêtre f, wall = mur m, roof = toit m",
    "building": """house = maison f, school = école f, museum = musée m, station = gare f,
        shop = magasin m, restaurant = restaurant m, hotel = hôtel m, hospital = hôpital m,
        church = église f, library = bibliothèque f, castle = château m, office = bureau m,
        farm = ferme f, theater = théâtre m, airport = aéroport m, bank = banque f,
        university = université f, factory = usine f""",
    "room": """kitchen = cuisine f, bedroom = chambre f, living_room = salon m,
        bathroom = salle_de_bains/salles_de_bains f""",
    "outdoors": """garden = jardin m, park = parc m, street = rue f, market = marché m,
        city = ville f, village = village m, beach = plage f, forest = forêt f, river = rivière f,
        bridge = pont m, sea = mer f 1, mountain = montagne f, lake = lac m, field = champ m,
        island = île f, road = route f, path = chemin m, valley = vallée f, tunnel = tunnel m""",
    "unit": """year = an m, euro = euro m, day = jour m, week = semaine f, month = mois m,
        hour = heure f""",
}
SETS = {
    "person": "parent kin folk job",
    "animal": "pet farm_animal wild_animal",
    "food": "fruit vegetable snack staple dish",
    "letterlike": "letter message postcard",
    "text": "letterlike novel article poem story",
    "wheeled": "car truck bus taxi tractor",
    "boarded": "train bus plane boat taxi",
    "fragile": "glass cup plate bottle mirror window lamp",
    "openable": "door window box suitcase bottle shop",
    "colorable": """hat coat shirt dress shoe sweater skirt glove scarf uniform car bicycle truck
        chair armchair carpet bag box umbrella suitcase pen candle blanket lamp door rose flower""",
}
MASCULINE_PLURALS = {"al": "aux", "au": "aux", "eu": "eux"}


def _forms(entry: str) -> Forms:
    singular, _, plural = entry.replace("_", " ").partition("/")
    return singular, plural


def _english(entry: str) -> Forms:
    singular, plural = _forms(entry)
    if plural:
        return singular, plural
    if singular[-1] == "y" and singular[-2] not in "aeiou":
        return singular, singular[:-1] + "ies"
    if singular.endswith(("s", "x", "ch", "sh", "ato", "hero")):
        return singular, singular + "es"
    return singular, singular + "s"


def _french(entry: str) -> Forms:
    singular, plural = _forms(entry)
    if plural:
        return singular, ("*" if entry.startswith("*") else "") + plural
    if singular.endswith(("s", "x", "z")):
        return singular, singular
    if singular[-2:] in MASCULINE_PLURALS:
        return singular, singular[:-2] + MASCULINE_PLURALS[singular[-2:]]
    return singular, singular + "s"


def _noun(group: str, row: str) -> Noun:
    english, _, rest = row.partition(" = ")
    french, gender_name, *flags = rest.split()
    masculine, _, feminine = french.partition(":")
    gender: Gender = "f" if gender_name == "f" else "m"
    number = {"1": "singular", "2": "plural"}.get("".join(flags), "both")
    return Noun(
        key=english.partition("/")[0].replace("_", " "),
        group=group,
        english=_english(english) if number != "plural" else (english, english),
        french=_french(masculine) if number != "plural" else (masculine, masculine),
        gender=gender,
        feminine=_french(feminine) if feminine else None,
        mass="-" in flags,
        number="singular" if group == "parent" else number,  # type: ignore[arg-type]
    )


NOUNS = {
    noun.key: noun
    for group, rows in GROUPS.items()
    for noun in (_noun(group, " ".join(row.split())) for row in rows.split(","))
}


@cache
def noun_keys(names: str) -> tuple[str, ...]:
    """The nouns meant by a list of groups, sets and nouns, in order, each once."""
    keys: dict[str, None] = {}
    for name in names.split():
        if name in SETS:
            keys |= dict.fromkeys(noun_keys(SETS[name]))
        elif name in GROUPS:
            keys |= dict.fromkeys(key for key, noun in NOUNS.items() if noun.group == name)
        else:
            keys[NOUNS[name.replace("_", " ")].key] = None
    return tuple(keys)
