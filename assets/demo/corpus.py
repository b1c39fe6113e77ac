"""The closed little world that the demonstration model is trained on.

Everything here is made up by this script: a grammar of people, animals, things,
places, wishes, problems and ends writes short stories, and since it knows the
facts of each story it also writes questions with right answers, a one-line
summary and the feeling that the story ends with. The same seed and index always
give the same example.

    python corpus.py [seed] [count]      prints some examples
"""

import random
import sys
import zlib

# --------------------------------------------------------------------------
# Words
# --------------------------------------------------------------------------

GIRLS = ("Mia Anna Lily Zoe Emma Lucy Nora Ella Rosa Ruby Ivy Maya Sara Clara Alice Nina Eva Lena "
         "Tina Molly Daisy Jane Kate Amy Lola Vera Hana Ada Holly Leila Mina Olga Rita Sophie Tara "
         "Wendy Bella Cora Dora Greta Iris Kira").split()
BOYS = ("Tom Ben Sam Max Leo Tim Jack Finn Noah Omar Paul Peter Adam Hugo Ivan Karl Luca Nick Oscar "
        "Otto Rob Simon Theo Toby Victor Zack Alex Andy Bill Dan Felix Fred George Henry Ian Jim Joe "
        "Kai Liam Owen Ravi Ted").split()
PETS = "Pip Bruno Coco Dot Fluffy Goldie Hazel Jojo Kiki Milo Nibbles Pepper Rex Rusty Scout Snowy Teddy Ziggy".split()
HEROES = "fox rabbit bear mouse duck frog dog cat squirrel hedgehog pig goat owl turtle".split()

COLOURS = "red blue green yellow orange purple pink white black brown silver golden".split()
TOYS = ("ball kite doll drum hat scarf book boat cup bell key ring coat box lamp basket bag flute train car "
        "umbrella clock blanket shell stone button whistle puppet crown robot").split()
ANIMALS = ("dog cat bird duck rabbit fox frog mouse horse sheep goat cow hen owl turtle squirrel hedgehog "
           "pig deer puppy kitten").split()
SCARY = ["a wolf", "a big bear", "a snake", "a lion", "a giant spider", "a bat", "a big dog", "an angry bull"]
FOODS = "bread soup milk honey cheese cake rice pie berries nuts cookies apples pears eggs".split()
PLURAL = {"berries", "nuts", "cookies", "apples", "pears", "eggs"}
FLOWERS = ["rose", "tulip", "sunflower", "lily", "daisy", "bean", "pumpkin", "apple tree", "cherry tree", "carrot"]
# Each place with the words that stand before it when someone is there.
PLACES = {"park": "in", "garden": "in", "forest": "in", "beach": "at", "river": "by", "lake": "by", "farm": "on",
          "school": "at", "market": "at", "hill": "on", "field": "in", "zoo": "at", "town": "in", "castle": "in",
          "meadow": "in", "library": "in", "museum": "in", "playground": "at", "station": "at", "bridge": "on"}
HOMES = ["in a small village", "in a little house by the sea", "on a farm", "in a big city", "near the forest",
         "in a small town", "on a green hill", "by the river", "in an old castle", "on a small island",
         "in a house with a red roof", "at the edge of the woods"]
SPOTS = ["under the bed", "behind the door", "in the tall grass", "under a big tree", "in an old box",
         "behind the barn", "next to the well", "on the roof", "in the mud", "between two rocks", "inside a shoe",
         "under a bench", "near the gate", "behind a bush", "under a pile of leaves", "in the kitchen",
         "on a high shelf", "under the stairs", "in a bird nest", "at the bottom of the pond"]
LOVES = ["to sing", "to draw", "to climb trees", "to read", "to swim", "to run", "to dance", "to cook", "to fish",
         "to paint", "to play outside", "to count the stars", "to ride a bike", "to tell jokes"]
AGES = "four five six seven eight nine ten".split()
WEATHERS = "sunny rainy windy cold warm snowy cloudy foggy hot".split()
TIMES = "morning afternoon evening".split()
VEHICLES = ["by train", "by bus", "by boat", "on foot", "by bike", "by car", "on a horse"]
ADJ = "little kind brave shy quiet clever small young cheerful lonely curious gentle".split()
FAMILY = {"mother": "f", "father": "m", "grandmother": "f", "grandfather": "m", "aunt": "f", "uncle": "m"}
STRANGERS = {"old man": "m", "old woman": "f", "farmer": "m", "baker": "f", "teacher": "f", "fisherman": "m",
             "doctor": "f", "shopkeeper": "m", "gardener": "m", "sailor": "m", "nurse": "f", "painter": "m"}
ERRANDS = {"forest": ["look for berries", "find some wood", "pick flowers", "look for nuts"], "town": ["buy bread", "buy a gift", "see the lights"],
           "market": ["buy eggs", "sell apples", "buy a coat"], "hill": ["fly a kite", "see the sun go down", "play in the snow"],
           "zoo": ["see the lions", "draw the animals"], "museum": ["look at the old clocks", "see the big bones"],
           "field": ["catch a butterfly", "fly a kite", "pick flowers"], "lake": ["catch a fish", "look for frogs"]}
NOISES = ["a loud noise", "a strange sound", "a deep growl", "a strange voice", "a loud bang", "a long howl"]
MADE = {"cake": "baked", "pie": "baked", "kite": "made", "picture": "painted", "card": "made", "necklace": "made",
        "toy boat": "built", "birdhouse": "built", "sandcastle": "built", "paper crown": "made", "scarf": "knitted",
        "snowman": "built"}
FEELINGS = ["happy", "sad", "afraid", "angry"]
UNKNOWN = "The story does not say."


def a(phrase):
    """The phrase with the right article."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def cap(text):
    return text[0].upper() + text[1:]


def made_up_name(rng):
    """A name that is in no list, so that names of several tokens are copied too."""
    count = rng.choice([2, 2, 3])
    return cap("".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(count))
               + rng.choice(["", "n", "l", "s", "r", "x"]))


class Who:
    """A character: a name (or none), a kind and the pronouns."""

    def __init__(self, name, kind, sex):
        self.name, self.kind, self.sex = name, kind, sex
        self.he, self.him, self.his = ("she", "her", "her") if sex == "f" else ("he", "him", "his")


class Story:
    """A story being written: its sentences, and the facts that questions ask for."""

    def __init__(self, rng):
        self.rng = rng
        self.sentences = []
        self.questions = []   # (type, key, answer, list of wordings)
        self.absent = []      # (type, wordings): what this story never tells, when nothing answers the type
        self.topics = []
        self.summary = None
        self.feeling = None
        self.env = {}
        self.names = set()
        self.plot = None
        # How much is told: short texts are as welcome as long ones.
        self.detail = rng.choice([0, 0.9, 1.4, 1.8, 2.4])

    # -- writing ----------------------------------------------------------
    def fill(self, template):
        return template.format(**self.env)

    def s(self, *options):
        """Writes one of the sentences."""
        self.sentences.append(self.fill(self.rng.choice(options)))

    def o(self, chance, *options):
        """Writes one of the sentences, or none, and none twice."""
        fresh = [x for x in map(self.fill, options) if x not in self.sentences]
        if self.rng.random() < chance * self.detail and fresh:
            self.sentences.append(self.rng.choice(fresh))

    def q(self, kind, key, answer, *wordings):
        """Notes a question that this story answers; key is what a right answer must hold."""
        self.questions.append((kind, self.fill(key), self.fill(answer), [self.fill(w) for w in wordings]))

    def feel(self, feeling, final=True):
        """Says that the hero feels so; the last call sets the feeling of the story."""
        self.s(*FEEL_TEXT[feeling])
        if final:
            self.feeling = feeling

    def why(self, feeling, clause):
        """Notes why the hero feels so."""
        self.env["clause"] = self.fill(clause)
        self.q("why_" + feeling, "{clause}", "{X} was " + feeling + " because {clause}.", "Why was {X} " + feeling + "?",
               "Why did {X} feel " + feeling + "?")

    def scene(self):
        """A sentence on the surroundings."""
        self.o(0.35, *SCENES, *(GREEN if self.env["place"] in GREEN_PLACES else []))

    def close(self, feeling):
        """The hero's last feeling, and perhaps a last sentence."""
        self.feel(feeling)
        self.o(0.6, *CLOSING[feeling])
        self.o(0.2, *CLOSING[feeling])
        self.q_feel("at the end", feeling)

    @property
    def text(self):
        return " ".join(self.sentences)

    # -- characters and things ----------------------------------------------
    def name(self, names):
        while True:
            name = made_up_name(self.rng) if names is not PETS and self.rng.random() < 0.06 else self.rng.choice(names)
            if name not in self.names:
                self.names.add(name)
                return name

    def person(self, animals=0.25):
        if self.rng.random() < animals:
            return Who(self.name(PETS), self.rng.choice(HEROES), self.rng.choice("fm"))
        sex = self.rng.choice("fm")
        return Who(self.name(GIRLS if sex == "f" else BOYS), "girl" if sex == "f" else "boy", sex)

    def put(self, prefix, who):
        """Makes a character's words available to the sentences: {X}, {Xhe}, {XHis} and so on."""
        he, him, his = who.he, who.him, who.his
        self.env.update({prefix: who.name, prefix + "he": he, prefix + "him": him, prefix + "his": his,
                         prefix + "He": cap(he), prefix + "His": cap(his), prefix + "kind": who.kind})

    def thing(self, letter="O", colour=0.75, pool=TOYS):
        """Draws a thing: {O} is 'red ball', {aO} 'a red ball', {o} 'ball'; notes the colour question."""
        rng = self.rng
        noun = rng.choice(pool)
        while noun in self.env.values():
            noun = rng.choice(pool)
        wording = [f"What colour was the {noun}?", f"What color was the {noun}?", f"Which colour did the {noun} have?"]
        if rng.random() < colour:
            shade = rng.choice(COLOURS)
            phrase = f"{shade} {noun}"
            self.q("colour", shade, f"The {noun} was {shade}.", *wording)
        else:
            phrase = f"{rng.choice(['old', 'new', 'big', 'little', 'lovely'])} {noun}" if rng.random() < 0.5 else noun
            self.absent.append(("colour", wording))
        self.env.update({letter: phrase, "a" + letter: a(phrase), letter.lower(): noun})
        self.topics.append(("a", noun))

    def place(self, pool=None):
        place = self.rng.choice(pool or list(PLACES))
        self.env.update({"place": place, "at": f"{PLACES[place]} the {place}", "to": f"to the {place}"})
        self.topics.append(("the", place))

    def helper(self, kinds="friend friend friend sibling family stranger animal"):
        """Draws who helps: {H} first mention, {h} later ones, {hkey} what an answer must hold."""
        rng, kind = self.rng, self.rng.choice(kinds.split())
        his = self.env["his"]
        if kind in ("friend", "sibling"):
            who = self.person(0.15 if kind == "friend" else 0)
            word = "friend" if kind == "friend" else ("sister" if who.sex == "f" else "brother")
            first, short = f"{his} {word} {who.name}", who.name
            self.q("relation", who.name, f"The name of {{X}}'s {word} was {who.name}.",
                   f"What was the name of {{X}}'s {word}?", f"Who was {{X}}'s {word}?")
            self.topics.append(("", who.name))
        elif kind == "family":
            word = rng.choice(list(FAMILY))
            who = Who(word, word, FAMILY[word])
            first = short = f"{his} {word}"
        elif kind == "stranger":
            word = rng.choice(list(STRANGERS))
            who = Who(word, word, STRANGERS[word])
            first = a(word if word.startswith("old") else rng.choice(["kind ", "old ", "friendly ", ""]) + word)
            short = f"the {word}"
        else:
            word = rng.choice([x for x in ANIMALS if x != self.env["kind"] and x not in self.env.values()])
            who = Who(word, word, "m")
            who.he, who.him, who.his = "it", "it", "its"
            first = a(rng.choice(["clever ", "friendly ", "little ", "big ", ""]) + word)
            short = f"the {word}"
            self.topics.append(("a", word))
        self.env.update({"H": first, "HC": cap(first), "h": short, "hC": cap(short), "hhe": who.he, "hHe": cap(who.he),
                         "hhis": who.his, "hhim": who.him, "hkey": who.name})
        return kind

    # -- openings -------------------------------------------------------------
    def hero(self, who=None):
        who = who or self.person()
        self.who = who
        self.put("X", who)
        self.env.update({"he": who.he, "him": who.him, "his": who.his, "He": cap(who.he), "His": cap(who.his),
                         "kind": who.kind, "adj": self.rng.choice(ADJ)})
        self.env["aadj"] = a(self.env["adj"])
        self.topics += [("", who.name), ("a", who.kind)]

    def opening(self):
        """Presents the hero, and sometimes tells an age, a home or something that the hero loves."""
        rng = self.rng
        home = rng.random() < 0.4
        self.env["home"] = rng.choice(HOMES)
        known = self.who.name in GIRLS or self.who.name in BOYS
        if known and rng.random() < 0.2:
            home = False   # begins in the middle; the name tells who it is
        elif home:
            self.s("Once upon a time, {aadj} {kind} named {X} lived {home}.",
                   "Once upon a time, there was {aadj} {kind} named {X} who lived {home}.",
                   "{X} was {aadj} {kind} who lived {home}.", "There once was a {kind} named {X} who lived {home}.",
                   "A {kind} called {X} lived {home}.")
        else:
            self.s("Once upon a time, there was {aadj} {kind} named {X}.", "{X} was {aadj} {kind}.",
                   "Once there was a {kind} called {X}.", "There once was {aadj} {kind} named {X}.",
                   "Once upon a time, there was a {kind} named {X}.", "This is a story about a {kind} named {X}.")
        if self.sentences:
            # "a kind" of fox is "an owl" too, so the article is repaired here.
            self.sentences[-1] = self.sentences[-1].replace(" a owl", " an owl").replace("A owl", "An owl")
            self.q("about", self.who.name, f"The story is about {a(self.who.kind)} named {{X}}.",
                   "Who is the story about?", "Who is this story about?")
            self.q("name", self.who.name, "The name of the {kind} was {X}.", "What was the name of the {kind}?")
        where = ["Where did {X} live?", "Where was {X}'s home?"]
        if home:
            self.q("home", "{home}", "{X} lived {home}.", *where)
        else:
            self.absent.append(("home", [self.fill(w) for w in where]))
        old = ["How old was {X}?", "What was {X}'s age?"]
        if self.who.kind in ("girl", "boy") and self.sentences and rng.random() < 0.25:
            self.env["age"] = rng.choice(AGES)
            self.s("{He} was {age} years old.", "{X} was {age} years old.")
            self.q("age", "{age}", "{X} was {age} years old.", *old)
        else:
            self.absent.append(("age", [self.fill(w) for w in old]))
        if self.sentences:
            self.o(0.3, "{X} had many friends.", "Everyone liked {X}.", "{X} was always ready to play.", "{X} was full of ideas.",
                   "{He} laughed a lot.", "{He} had big dreams.", "{He} liked to be outside.", "{X} was good at many things.")
        loves = ["What did {X} love to do?", "What did {X} like to do?"]
        if self.sentences and rng.random() < 0.25:
            self.env["love"] = rng.choice(LOVES)
            self.s("{He} loved {love}.", "{X} loved {love}.", "Every day, {X} liked {love}.")
            self.q("love", "{love}", "{X} loved {love}.", *loves)
        else:
            self.absent.append(("love", [self.fill(w) for w in loves]))

    def day(self):
        """Draws the words that open the day: {Day} is 'One sunny morning', 'One day' and the like."""
        rng = self.rng
        weather, time = rng.choice(WEATHERS), rng.choice(TIMES)
        shape = rng.choice("wtbnn")
        self.env["Day"] = {"w": f"One {weather} day", "t": f"One {time}", "b": f"One {weather} {time}",
                           "n": rng.choice(["One day", "One day", "Then one day" if self.sentences else "One day",
                                            "Last week"])}[shape]
        ask_weather = ["What was the weather like?", "How was the weather?"]
        ask_time = ["What time of day was it?", "When did it happen?"]
        if shape in "wb":
            self.q("weather", weather, f"The weather was {weather}.", *ask_weather)
        else:
            self.absent.append(("weather", ask_weather))
        if shape in "tb":
            self.q("time", time, f"It was {time}.", *ask_time)
        else:
            self.absent.append(("time", ask_time[:1]))

        if self.sentences:
            self.o(0.15, "Every day was like the one before.", "{X} did not know what the day would bring.", "It was a good life.",
                   "{X} got up early.", "{X} had a big breakfast and put on {his} shoes.")

    def q_place(self, verb="go"):
        self.q("place", "{place}", "{X} went {to}.", "Where did {X} go?", "Where did {X} go that day?",
               "To which place did {X} go?")

    def q_helper(self, what="helped {X}"):
        self.q("helper", "{hkey}", "{hC} " + what + ".", "Who " + what + "?")

    def q_feel(self, when, feeling):
        """A question about the hero's feeling; 'when' is 'at the end' or a clause."""
        self.q("feel", feeling, "{X} felt " + feeling + ".", "How did {X} feel " + when + "?")


FEEL_TEXT = {
    "happy": ["{X} was very happy.", "{X} felt happy.", "{X} was so glad.", "{X} smiled a big smile.",
              "{X} laughed with joy.", "{X} jumped for joy.", "{X} was happy all day long.",
              "It was the best day of {X}'s life.", "{X} danced with joy."],
    "sad": ["{X} was very sad.", "{X} felt sad.", "{X} began to cry.", "Tears ran down {X}'s face.",
            "{X} sat down and cried.", "{X} was sad all day long.", "{X} felt sad and alone.", "{X} had tears in {his} eyes."],
    "afraid": ["{X} was very afraid.", "{X} was scared.", "{X} began to shake.", "{X}'s heart beat very fast.",
               "{X} was too afraid to move.", "{X} was so scared that {he} could not speak.", "{X} felt afraid and did not make a sound."],
    "angry": ["{X} was very angry.", "{X} got mad.", "{X} stamped {his} foot.", "{X} shouted, \"That is not fair!\"",
              "{X}'s face turned red, and {he} shouted.", "{X} was so angry that {he} did not say a word.",
              "{X} felt angry and walked up and down."],
}

# Sentences that say nothing on which a question could rest.
SCENES = ["There were many people there.", "It was very quiet there.", "A soft wind blew.", "White clouds moved over the sky.",
          "There was so much to see.", "No one else was there.", "Somewhere a bell rang."]
GREEN = ["The birds sang in the trees.", "The air smelled of flowers.", "The grass was soft and green.", "Bees flew from flower to flower."]
GREEN_PLACES = {"park", "garden", "forest", "river", "lake", "farm", "hill", "field", "meadow"}
CLOSING = {
    "happy": ["That night, {X} slept well.", "{X} told everyone at home about it.", "{X} never forgot that day.",
              "It is good to have friends.", "What a good day it was!", "And {X} sang all the way home.", "{X} could not stop smiling.",
              "{X} sang a little song.", "It was a day to remember."],
    "sad": ["That night, {X} could not sleep.", "{X} did not want to play any more.", "{X} looked out of the window for a long time.",
            "The house was very quiet.", "{X} did not eat or sing that day.", "Nothing could make {X} smile.", "{X} thought about it for many days.",
            "It was a bad day."],
    "afraid": ["{X} only wanted to be at home in bed.", "{X} hoped that it would end soon.", "{X} did not sleep that night.",
               "{X} held {his} breath.", "{X} never went there again.", "It was the worst day of {X}'s life.", "{X} wished that someone was there."],
    "angry": ["{X} walked away without a word.", "\"I will never forget this,\" said {X}.", "{X} did not talk to anyone that day.",
              "{X} went to {his} room and threw a pillow at the wall.", "\"This is so mean!\" said {X}.", "{X} was in a bad mood all day.",
              "{X} kicked a stone as hard as {he} could."],
}

# --------------------------------------------------------------------------
# Plots: each takes a story with a hero and the feeling that it shall end with
# --------------------------------------------------------------------------


def plot_lost(st, end):
    """Something is lost, and found, or not, or someone took it."""
    st.opening(), st.thing(), st.day(), st.place()
    st.o(0.7, "{X} had {aO}.", "{X} had {aO} and took it everywhere.", "{He} had {aO} that {he} loved very much."
         if st.sentences else "{X} had {aO} that {he} loved very much.")
    st.o(0.15, "It was a present from {his} mother.", "{He} had had it for many years.") if st.sentences and "had" in st.sentences[-1] else None
    st.s("{Day}, {X} went {to} with {his} {o}." if len(st.sentences) > 1 and st.env["O"] in st.text
         else "{Day}, {X} went {to} with {aO}.",
         "{Day}, {X} lost {his} {O} {at}.", "{Day}, {X} was playing {at} with {his} {O}.")
    if "lost" not in st.sentences[-1]:
        st.s("But then {he} could not find {his} {o}.", "On the way home, {he} saw that the {o} was gone.",
             "Suddenly the {o} was gone.", "But {he} lost the {o}.")
    st.q("lose", "{o}", "{X} lost {aO}.", "What did {X} lose?", "What was lost?")
    st.q("loser", "{X}", "{X} lost the {o}.", "Who lost the {o}?", "Who lost {aO}?")
    st.q("place", "{place}", "{X} lost the {o} {at}.", "Where did {X} lose the {o}?", "Where was the {o} lost?")
    st.o(0.35, "\"Oh no!\" said {X}.", "\"Where is my {o}?\" said {X}.", "\"My {o} is gone!\" said {X}.")
    st.o(0.5, *FEEL_TEXT["sad"])
    if st.sentences[-1] in [st.fill(x) for x in FEEL_TEXT["sad"]] and end != "angry":
        st.q_feel("when the {o} was gone", "sad")
    if end == "happy":
        st.q("yesno", "Yes", "Yes, the {o} was found.", "Was the {o} found?", "Did {X} find the {o}?")
        alone = st.rng.random() < 0.15
        st.env["spot"] = st.rng.choice(SPOTS)
        st.q("found", "{spot}", "The {o} was {spot}.", "Where was the {o}?", "Where was the {o} found?",
             "Where did {X} find the {o}?")
        if alone:
            st.s("{X} looked everywhere.", "{He} looked and looked.")
            st.s("At last, {X} found the {o} {spot}.", "Then {he} saw the {o} {spot}.")
            st.summary = st.fill("{X} lost {aO} {at} and found it {spot}.")
            st.absent.append(("helper", [st.fill("Who helped {X}?")]))
        else:
            st.helper()
            st.s("{HC} came to help.", "{HC} saw this and wanted to help.", "Then {X} met {H}.",
                 "{X} asked {H} for help.", "\"I will help you,\" said {H}.")
            st.s("They looked everywhere together.", "Together they looked for the {o}.", "They looked and looked.")
            st.s("At last, they found the {o} {spot}.", "Then {h} found the {o} {spot}.",
                 "The {o} was {spot}!", "There it was, {spot}!")
            if st.fill("{h} found the {o}") in st.text:
                st.q("finder", "{hkey}", "{hC} found the {o}.", "Who found the {o}?")
            st.q_helper()
            st.summary = st.fill("{X} lost {aO} {at}, and {h} helped {him} find it {spot}.")
            st.o(0.5, "\"Thank you!\" said {X}.", "{X} thanked {h}.", "{X} gave {h} a big hug.")
    elif end == "sad":
        st.s("{X} looked everywhere, but the {o} was gone.", "{He} looked until it was dark, but {he} did not find it.",
             "{He} never found the {o} again.")
        st.summary = st.fill("{X} lost {aO} {at} and did not find it.")
        st.why("sad", "{he} lost the {o}")
        st.q("yesno", "No", "No, the {o} was not found.", "Was the {o} found?", "Did {X} find the {o}?")
        st.absent.append(("found", [st.fill("Where was the {o} found?"), st.fill("Who found the {o}?")]))
    else:
        y = st.person(0.1)
        st.put("Y", y)
        st.s("Then {X} saw {Y} with the {o}.", "It was {Y} who had taken the {o}.", "{Y} had taken it and would not give it back.")
        st.s("\"Give it back!\" said {X}, but {Y} ran away.", "{Y} only laughed.", "{Y} did not say sorry.")
        st.q("taker", "{Y}", "{Y} took the {o}.", "Who took the {o}?", "Who had taken the {o}?")
        st.why("angry", "{Y} took the {o}")
        st.summary = st.fill("{X} lost {aO} {at} because {Y} took it.")
    st.close(end)


def plot_wish(st, end):
    """Someone wants a thing and gets it, or not."""
    st.opening(), st.thing(), st.day()
    st.s("{X} wanted {aO} more than anything.", "{X} wished for {aO}.", "More than anything, {X} wanted {aO}.",
         "{X} dreamed of {aO}.", "All {X} wanted was {aO}.")
    st.q("want", "{o}", "{X} wanted {aO}.", "What did {X} want?", "What did {X} wish for?")
    st.q("wanter", "{X}", "{X} wanted {aO}.", "Who wanted {aO}?", "Who wished for the {o}?")
    st.o(0.4, "But it cost too much money.", "Every night {he} thought about it.", "{He} saved every coin.",
         "{He} saw one in a shop window.")
    if end == "happy":
        st.helper("friend friend family family stranger sibling")
        st.s("{Day}, {H} came with a big box.", "{Day}, {H} came to visit.", "{Day}, {X} met {H}.",
             "{Day}, {H} had a surprise for {X}.", "{Day}, {X} told {H} about it.")
        st.s("{hC} gave {X} {aO}!", "{hHe} gave {him} {aO}.", "In {hhis} hands was {aO}, and it was for {X}.",
             "\"This is for you,\" said {h}, and gave {him} {aO}.")
        st.q("giver", "{hkey}", "{hC} gave {X} the {o}.", "Who gave {X} the {o}?", "Who gave the {o} to {X}?")
        st.o(0.5, "\"Thank you!\" said {X}.", "{X} gave {h} a hug.", "{X} could not believe it.")
        st.why("happy", "{he} got {aO}")
        st.q("yesno", "Yes", "Yes, {X} got the {o}.", "Did {X} get the {o}?")
        st.summary = st.fill("{X} wanted {aO}, and {h} gave {him} one.")
    else:
        if end == "sad":
            st.s("{Day}, {X} went to the shop, but the {o} was gone.", "{Day}, someone else bought the {o}.",
                 "{Day}, {X} heard that there was no {o} left.", "But the birthday came, and there was no {o}.")
            st.why("sad", "{he} did not get the {o}")
            st.q("yesno", "No", "No, {X} did not get the {o}.", "Did {X} get the {o}?")
            st.summary = st.fill("{X} wanted {aO} but did not get it.")
        else:
            st.put("Y", st.person(0.1))
            st.s("{Day}, {Y} got {aO} and would not let {X} touch it.", "{Day}, {Y} bought the last {o} and laughed at {X}.")
            st.q("getter", "{Y}", "{Y} got the {o}.", "Who got the {o}?")
            st.why("angry", "{Y} got the {o}")
            st.summary = st.fill("{X} wanted {aO}, but {Y} got it.")
        st.absent.append(("giver", [st.fill("Who gave {X} a gift?")]))
    st.close(end)


def plot_fear(st, end):
    """A noise or a beast frightens the hero; a helper comforts, or nobody does."""
    st.opening(), st.day(), st.place()
    st.s("{Day}, {X} went {to}.", "{Day}, {X} was alone {at}.", "{Day}, {X} was walking {at}.")
    if "went" in st.sentences[-1]:
        st.q_place()
    else:
        st.q("place", "{place}", "{X} was {at}.", "Where was {X}?", "Where did it happen?")
    st.scene()
    noise = st.rng.random() < 0.5
    st.env["noise"], st.env["beast"] = st.rng.choice(NOISES), st.rng.choice(SCARY)
    if noise:
        st.s("Suddenly {he} heard {noise}.", "Then there was {noise}.", "{X} heard {noise} in the dark.")
        st.q("hear", "{noise}", "{X} heard {noise}.", "What did {X} hear?")
        st.absent.append(("see", [st.fill("What animal did {X} see?")]))
        st.env["cause"] = st.env["noise"]
        st.env["did"] = "heard"
    else:
        st.s("Suddenly {he} saw {beast}.", "Then {beast} came out of the dark.", "There stood {beast}!")
        st.q("see", "{beast}", "{X} saw {beast}.", "What did {X} see?", "Which animal did {X} see?")
        st.absent.append(("hear", [st.fill("What did {X} hear?")]))
        st.env["cause"] = st.env["beast"]
        st.env["did"] = "saw"
    st.q("fear", "{cause}", "{X} was afraid of {cause}.", "What was {X} afraid of?", "What scared {X}?")
    if end == "happy":
        st.feel("afraid", final=False)
        st.q_feel("at first", "afraid")
        st.helper()
        st.s("{HC} came and held {X} tight." if "its" != st.env["hhis"] else "{HC} came and sat next to {X}.",
             "But then {H} came to help.", "{HC} heard {X} and came at once.")
        st.s("\"Do not be afraid,\" said {h}.", "\"You are safe now,\" said {h}.", "\"I am here,\" said {h}.")
        st.s("It was only the wind." if noise else "The animal ran away.", "Soon it was gone, and they went home together.")
        st.q_helper()
        st.summary = st.fill("{X} was afraid of {cause} {at}, but {h} helped {him}.")
    else:
        st.o(0.6, "{He} wanted to run, but {his} legs did not move.", "{He} wanted to go home.", "Nobody was there to help.",
             "It came closer and closer.")
        st.o(0.5, "{He} hid behind a tree.", "{He} closed {his} eyes.", "{He} called for help, but no one came.")
        st.summary = st.fill("{X} {did} {cause} {at} and was afraid.")
        st.why("afraid", "{he} {did} {cause}")
        st.absent.append(("helper", [st.fill("Who helped {X}?")]))
    st.close(end)


def plot_broken(st, end):
    """Someone breaks the hero's thing; there is an apology, or there is none."""
    st.opening(), st.thing(), st.day()
    st.put("Y", st.person(0.15))
    st.s("{X} had {aO}.", "{X} got {aO} for {his} birthday.", "{X} had made {aO} all by {his}self." if st.who.sex == "f"
         else "{X} had {aO} that {he} loved.")
    st.q("own", "{o}", "{X} had {aO}.", "What did {X} have?")
    st.s("{Day}, {Y} came to play.", "{Day}, {Y} wanted to see the {o}.", "{Day}, {X} showed the {o} to {Y}.",
         "{Day}, {X} and {Y} played together.")
    st.o(0.4, "\"Be careful with it,\" said {X}.", "At first, they had a lot of fun.", "\"May I hold it?\" said {Y}.")
    st.s("{Y} dropped the {o}, and it broke.", "{Y} broke the {o}.", "{Y} stepped on the {o} and broke it.",
         "But {Y} was not careful, and {Yhe} broke the {o}.")
    st.q("break", "{Y}", "{Y} broke the {o}.", "Who broke the {o}?")
    st.q("broken", "{o}", "{Y} broke the {o}.", "What did {Y} break?", "What broke?")
    if end == "happy":
        first = st.rng.choice(["sad", "angry"])
        st.feel(first, final=False)
        st.q_feel("when the {o} broke", first)
        st.q("yesno", "Yes", "Yes, {Y} said sorry.", "Did {Y} say sorry?")
        st.s("{Y} said sorry.", "\"I am so sorry,\" said {Y}.", "{Y} felt bad about it and said sorry.")
        st.s("Then {Yhe} fixed the {o} with glue.", "{Y} worked all night and fixed the {o}.", "Together they fixed the {o}.")
        st.o(0.4, "Now it was as good as new.", "They were friends again.")
        st.q("fix", "{Y}", "{Y} fixed the {o}.", "Who fixed the {o}?") if "Together" not in st.text else None
        st.summary = st.fill("{Y} broke {X}'s {O} but then said sorry and fixed it.")
    else:
        if end == "angry":
            st.q("yesno", "No", "No, {Y} did not say sorry.", "Did {Y} say sorry?")
            st.s("{Y} did not say sorry.", "{Y} just laughed and went away.", "\"I do not care,\" said {Y}.")
        else:
            st.s("Nobody could fix it.", "The {o} was lost forever.", "It could not be fixed.")
        st.why(end, "{Y} broke the {o}")
        st.summary = st.fill("{Y} broke {X}'s {O}.")
        st.absent.append(("fix", [st.fill("Who fixed the {o}?")]))
    st.close(end)


def plot_rescue(st, end):
    """The hero finds a lost animal and cares for it."""
    rng = st.rng
    st.opening(), st.day(), st.place()
    animal = rng.choice([x for x in ANIMALS if x != st.who.kind])
    trouble = rng.choice(["hungry", "cold", "lost", "hurt", "wet", "thirsty", "tired"])
    shade = rng.choice(["white", "black", "brown", "little", "small", "young", "gray"])
    food = rng.choice(FOODS)
    st.env.update(animal=animal, aanimal=a(f"{shade} {animal}"), trouble=trouble, food=food, spot=rng.choice(SPOTS[2:8:1]))
    st.topics.append(("a", animal))
    st.s("{Day}, {X} went {to}.", "{Day}, {X} was walking {at}.", "{Day}, {X} was playing {at}.")
    if "went" in st.sentences[-1]:
        st.q_place()
    st.scene()
    st.s("There {he} found {aanimal}.", "{He} found {aanimal} {spot}.", "{X} saw {aanimal} that was all alone.")
    st.q("find", "{animal}", "{X} found {aanimal}.", "What did {X} find?", "Which animal did {X} find?")
    if shade in ("white", "black", "brown", "gray"):
        st.q("colour", shade, f"The {animal} was {shade}.", f"What colour was the {animal}?", f"What color was the {animal}?")
    else:
        st.absent.append(("colour", [f"What colour was the {animal}?", f"What color was the {animal}?"]))
    st.s("The {animal} was {trouble}.", "It was {trouble} and needed help.", "The poor {animal} was {trouble}.")
    st.q("trouble", "{trouble}", "The {animal} was {trouble}.", "What was wrong with the {animal}?",
         "Why did the {animal} need help?")
    st.s("{X} gave it some {food}.", "{X} took it home and gave it {food}.", "{X} brought it some {food}.")
    st.q("food", "{food}", "{X} gave the {animal} some {food}.", "What did {X} give the {animal}?",
         "What did the {animal} eat?")
    st.o(0.4, "It ate it all.", "The {animal} looked at {him} with big eyes.", "Soon it felt much better.")
    if end == "happy":
        st.env["pet"] = st.name(PETS)
        st.s("From that day on, the {animal} lived with {X}.", "The {animal} stayed with {X}.",
             "{X} and the {animal} became friends.")
        if rng.random() < 0.6:
            st.s("{X} named the {animal} {pet}.", "{X} called it {pet}.")
            st.q("petname", "{pet}", "The name of the {animal} was {pet}.", "What was the name of the {animal}?",
                 "What did {X} call the {animal}?")
        else:
            st.absent.append(("petname", [st.fill("What was the name of the {animal}?")]))
        st.summary = st.fill("{X} found a {trouble} {animal} {at}, and they became friends.")
    else:
        st.put("Y", st.person(0))
        if end == "sad":
            st.s("But the {animal} belonged to {Y}.", "Then {Y} came and said it was {Yhis} {animal}.")
            st.s("{X} had to say goodbye.", "{X} had to give it back.", "{Y} took the {animal} home.")
            st.why("sad", "{he} had to give the {animal} back")
            st.summary = st.fill("{X} found a {trouble} {animal} {at} but had to give it back to {Y}.")
        else:
            st.s("Then {Y} came and chased the {animal} away.", "But {Y} shouted at the {animal} and chased it away.")
            st.s("\"Stop that!\" said {X}.", "{Y} thought it was funny.")
            st.q("bad", "{Y}", "{Y} chased the {animal} away.", "Who chased the {animal} away?")
            st.why("angry", "{Y} chased the {animal} away")
            st.summary = st.fill("{X} found a {trouble} {animal} {at}, but {Y} chased it away.")
        st.q("owner", "{Y}", "The {animal} belonged to {Y}.", "Whose {animal} was it?",
             "Who owned the {animal}?") if end == "sad" else None
    st.close(end)


def plot_make(st, end):
    """The hero makes something for someone."""
    rng = st.rng
    st.opening(), st.day()
    made = rng.choice(list(MADE))
    st.env.update(made=made, verb=MADE[made], amade=a(made))
    st.topics.append(("a", made))
    st.helper("friend friend family family family sibling")
    st.s("{Day}, {X} {verb} {amade} for {H}.", "{Day}, {X} wanted to surprise {H}, so {he} {verb} {amade}.",
         "{Day}, {X} wanted to make a gift for {H}, so {he} {verb} {amade}.")
    st.q("make", "{made}", "{X} {verb} {amade}.", "What did {X} make?")
    st.q("forwhom", "{hkey}", "{X} {verb} it for {h}.", "Who was the {made} for?", "For whom did {X} make the {made}?")
    st.q("maker", "{X}", "{X} {verb} the {made}.", "Who made the {made}?")
    st.o(0.6, "{He} worked all day.", "It took a long time.", "{He} was very careful.", "It was hard work.")
    if rng.random() < 0.35 or end == "angry":
        st.put("Y", st.person(0.15))
    if end == "happy":
        if "Y" in st.env:
            st.s("{Y} helped {him} with the work.", "{Y} came and helped {him}.")
            st.q("helper", "{Y}", "{Y} helped {X}.", "Who helped {X}?")
        else:
            st.absent.append(("helper", [st.fill("Who helped {X}?")]))
        st.s("{hC} loved the {made}.", "\"What a lovely {made}!\" said {h}.", "{hC} liked it very much.",
             "When {h} saw the {made}, {hhe} gave {X} a hug.")
        st.summary = st.fill("{X} {verb} {amade} for {h}, and {hhe} loved it.")
    elif end == "sad":
        said, short = rng.choice([("But the {made} fell down and broke.", "it broke"), ("But on the way, {he} dropped the {made}.", "{he} dropped it"),
                                  ("But the rain ruined the {made}.", "the rain ruined it"),
                                  ("But {h} did not like the {made}.", "{h} did not like it")])
        st.s(said)
        st.why("sad", short.replace("it", "the {made}"))
        st.summary = st.fill("{X} {verb} {amade} for {h}, but " + short + ".")
    else:
        st.s("But {Y} came and ruined the {made}.", "But {Y} broke the {made} and ran away.", "But {Y} took the {made}.")
        st.q("ruin", "{Y}", "{Y} ruined the {made}.", "Who ruined the {made}?") if "took" not in st.sentences[-1] else \
            st.q("taker", "{Y}", "{Y} took the {made}.", "Who took the {made}?")
        st.why("angry", "{Y} " + ("took" if "took" in st.sentences[-1] else "ruined") + " the {made}")
        st.summary = st.fill("{X} {verb} {amade} for {h}, but {Y} " + ("took" if "took" in st.sentences[-1] else "ruined") + " it.")
    st.close(end)


def plot_trip(st, end):
    """A journey with someone; it goes well or badly."""
    rng = st.rng
    st.opening(), st.day(), st.place()
    st.env.update(how=rng.choice(VEHICLES), animal=rng.choice([x for x in ANIMALS if x != st.who.kind]),
                  food=rng.choice(FOODS), beast=rng.choice(SCARY))
    st.helper("friend friend sibling family family")
    st.s("{Day}, {X} and {H} went {to} {how}.", "{Day}, {X} went {to} with {H}.", "{Day}, {H} took {X} {to}.")
    st.q_place()
    st.q("with", "{hkey}", "{X} went with {h}.", "Who went with {X}?", "With whom did {X} go?")
    how = ["How did they get there?", "How did they travel?"]
    if st.env["how"] not in st.sentences[-1] and rng.random() < 0.5:
        st.s("They went {how}.", "They travelled {how}.")
    if st.env["how"] in st.text:
        st.q("how", "{how}", "They went {how}.", *how)
    else:
        st.absent.append(("how", how))
    st.scene()
    if rng.random() < 0.6:
        st.s("There they saw {aan}.".replace("{aan}", a(st.env["animal"])), "On the way, they saw {aan}.".replace("{aan}", a(st.env["animal"])))
        st.q("see", "{animal}", "They saw " + a(st.env["animal"]) + ".", "What did they see?", "Which animal did they see?")
    else:
        st.absent.append(("see", ["Which animal did they see?"]))
    eat = ["What did they eat?"]
    if rng.random() < 0.55:
        st.s("They sat down and ate {food}.", "For lunch, they ate {food}.", "They had {food} for lunch.")
        st.q("eat", "{food}", "They ate {food}.", *eat)
    else:
        st.absent.append(("eat", eat))
    if end == "happy":
        st.s("They played until the sun went down.", "They laughed and sang all the way home.", "They had a lot of fun.",
             "They stayed all day.")
        st.summary = st.fill("{X} went {to} with {h} and had a good day.")
    elif end == "sad":
        said, short = rng.choice([("But then it began to rain, and they had to go home.", "it began to rain"),
                                  ("But {h} fell and got hurt.", "{h} got hurt"), ("But soon {h} felt ill, and they had to go back.", "{h} felt ill"),
                                  ("But on the way home, {X} lost {his} bag.", "{he} lost {his} bag")])
        st.s(said)
        st.why("sad", short)
        st.summary = st.fill("{X} went {to} with {h}, but " + short + ".")
    elif end == "afraid":
        if rng.random() < 0.5:
            st.s("Then it got dark, and they lost their way.", "Then a big storm came, and they could not go home.")
            st.summary = st.fill("{X} went {to} with {h}, and something scared them.")
        else:
            st.s("Then {beast} came out of nowhere.", "Then {beast} ran after them.")
            st.q("fear", "{beast}", "{X} was afraid of {beast}.", "What scared {X}?", "What was {X} afraid of?")
            st.summary = st.fill("{X} went {to} with {h}, and {beast} scared them.")
    else:
        said, short = rng.choice([("But {h} ate all the food.", "{h} ate all the food"), ("But {h} went home without {X}.", "{h} went home alone"),
                                  ("But {h} was mean and pushed {X} into the mud.", "{h} was mean")])
        st.s(said)
        st.why("angry", short)
        st.summary = st.fill("{X} went {to} with {h}, but " + short + ".")
    st.close(end)


def plot_race(st, end):
    """Two run a race, and one wins."""
    rng = st.rng
    st.opening(), st.day(), st.place(["park", "field", "beach", "school", "meadow", "hill", "river", "lake"])
    st.put("Y", st.person(0.25))
    prize = rng.choice(["cup", "cake", "medal", "crown", "book", "basket of apples", "kite"])
    shade = rng.choice(COLOURS)
    st.env.update(prize=prize, aprize=a(f"{shade} {prize}") if prize in ("cup", "crown", "book", "kite") else a(prize))
    st.s("{Day}, {X} and {Y} had a race {at}.", "{Day}, there was a race {at} between {X} and {Y}.",
         "{Day}, {X} ran a race against {Y} {at}.")
    st.q("place", "{place}", "The race was {at}.", "Where was the race?")
    st.q("rival", "{Y}", "{X} ran against {Y}.", "Who did {X} race?", "Who ran against {X}?")
    if rng.random() < 0.6:
        st.s("The prize was {aprize}.", "The winner would get {aprize}.")
        st.q("prize", "{prize}", "The prize was {aprize}.", "What was the prize?", "What could the winner get?")
    else:
        st.absent.append(("prize", ["What was the prize?"]))
    st.o(0.7, "They ran as fast as they could.", "\"Ready, set, go!\"", "Everyone came to watch.", "The sun was hot, and the way was long.")
    if end == "happy":
        st.s("{X} was faster and won.", "{X} won the race.", "{X} came first, and everyone clapped.", "In the end, {X} was the winner.")
        st.summary = st.fill("{X} won a race against {Y} {at}.")
    elif end == "sad":
        st.s("{X} fell down, and {Y} won.", "{Y} was faster and won the race.", "{Y} won, and {X} came last.")
        st.summary = st.fill("{X} lost a race against {Y} {at}.")
    else:
        st.s("{Y} pushed {X} and won.", "{Y} did not play fair and won the race.", "{Y} took a short cut and won the race.")
        st.summary = st.fill("{Y} won a race against {X} {at} but did not play fair.")
    won = end == "happy"
    st.why(end, "{he} won the race" if won else "{he} lost the race" if end == "sad" else "{Y} did not play fair")
    st.q("yesno", "Yes" if won else "No", "Yes, {X} won the race." if won else "No, {Y} won the race.", "Did {X} win the race?", "Did {X} win?")
    st.env["winner"] = st.env["X"] if end == "happy" else st.env["Y"]
    st.env["loser"] = st.env["Y"] if end == "happy" else st.env["X"]
    st.q("win", "{winner}", "{winner} won the race.", "Who won the race?", "Who won?", "Who was the winner?")
    st.q("loserace", "{loser}", "{loser} lost the race.", "Who lost the race?")
    st.close(end)


def plot_night(st, end):
    """The hero loses the way, and is brought home, or is not."""
    st.opening(), st.day(), st.place(list(ERRANDS))
    st.env["want"] = st.rng.choice(ERRANDS[st.env["place"]])
    st.s("{Day}, {X} went {to} to {want}.", "{Day}, {X} wanted to {want}, so {he} went {to}.")
    st.q_place()
    st.q("why", "{want}", "{X} went there to {want}.", "Why did {X} go {to}?", "What did {X} want to do?")
    st.scene()
    st.s("{He} went too far and lost {his} way.", "Soon {he} did not know the way home.", "When {he} looked up, {he} was lost.",
         "It got dark, and {he} was lost.")
    if end == "happy":
        st.feel(st.rng.choice(["afraid", "sad"]), final=False)
        st.helper()
        st.s("Then {H} came by.", "{HC} heard {him}.", "Luckily, {X} met {H}.")
        st.s("{hC} showed {him} the way home.", "\"Come with me,\" said {h}, and they walked home.", "{hC} took {him} home.")
        st.q("helper", "{hkey}", "{hC} helped {X}.", "Who helped {X}?", "Who showed {X} the way home?", "Who took {X} home?")
        st.o(0.5, "{His} family was waiting at the door.", "At home, there was hot soup.")
        st.summary = st.fill("{X} got lost {at}, and {h} took {him} home.")
    else:
        st.o(0.6, "The wind was cold.", "No one answered.", "The moon was hidden, and it was very dark.")
        if end == "afraid":
            st.s("Something moved in the dark.", "{He} heard {noise}.".replace("{noise}", st.rng.choice(NOISES)), "Two big eyes looked at {him}.")
        else:
            st.s("{He} missed {his} mother so much.", "{He} was all alone and wanted to be at home.")
        st.why(end, "{he} was lost")
        st.summary = st.fill("{X} went {to} and got lost.")
        st.absent.append(("helper", [st.fill("Who helped {X}?"), st.fill("Who took {X} home?")]))
    st.close(end)


def plot_share(st, end):
    """Food is shared, or is not."""
    rng = st.rng
    st.opening(), st.day(), st.place()
    st.put("Y", st.person(0.2))
    st.env["food"], st.env["own"] = rng.sample(FOODS, 2)
    st.s("{Day}, {X} sat {at} with {Y}.", "{Day}, {X} and {Y} met {at}.", "{Day}, {X} met {Y} {at}.")
    st.q("place", "{place}", "They were {at}.", "Where were they?", "Where did {X} meet {Y}?")
    st.q("with", "{Y}", "{X} was with {Y}.", "Who was with {X}?", "Who did {X} meet?")
    st.scene()
    if end == "happy":
        giver, taker = ("X", "Y") if rng.random() < 0.5 else ("Y", "X")
        st.env.update(G=st.env[giver], T=st.env[taker], Ghe=st.env[giver + "he"], Ghis=st.env[giver + "his"])
        st.s("{T} was hungry and had nothing to eat.", "{T} had no food.")
        st.s("{G} had some {food}.", "{G} had some {food} in {Ghis} bag.")
        st.s("So {G} shared the {food} with {T}.", "{G} gave {T} half of the {food}.", "\"Let us share,\" said {G}.")
        st.q("food", "{food}", "{G} had some {food}.", "What did {G} have?", "What did they share?")
        st.q("sharer", "{G}", "{G} shared the {food}.", "Who shared the {food}?", "Who had the {food}?")
        st.q("hungry", "{T}", "{T} was hungry.", "Who was hungry?", "Who had no food?") if "hungry" in st.text else None
        st.summary = st.fill("{G} shared some {food} with {T} {at}.")
    else:
        st.s("{X} was hungry and had nothing to eat.", "{X} had no food and was hungry.")
        st.s("{Y} had some {food}.", "{Y} had some {food} in {Yhis} bag.")
        st.q("food", "{food}", "{Y} had some {food}.", "What did {Y} have?")
        st.q("hungry", "{X}", "{X} was hungry.", "Who was hungry?")
        st.q("haver", "{Y}", "{Y} had the {food}.", "Who had the {food}?")
        if end == "angry":
            st.s("But {Y} ate it all and laughed.", "\"I will not share!\" said {Y}.", "{Y} would not share with {X}.")
        else:
            st.s("But when {X} asked, {Y} walked away.", "But there was not enough for two.", "But {Y} did not see {him}, and nobody shared.")
        st.why(end, "{Y} did not share the {food}") if end == "angry" else None
        st.summary = st.fill("{X} was hungry {at}, but {Y} did not share the {food}.")
    st.close(end)


def plot_plant(st, end):
    """A seed is planted; it grows, dies or is eaten."""
    rng = st.rng
    st.opening(), st.day()
    st.env.update(plant=rng.choice(FLOWERS), animal=rng.choice(["goat", "cow", "rabbit", "hen", "sheep", "pig", "deer", "horse"]),
                  spot=rng.choice(["in the garden", "behind the house", "in a pot", "by the window", "next to the gate",
                                   "near the well", "in the field"]))
    while st.env["animal"] == st.who.kind:
        st.env["animal"] = rng.choice(["cow", "sheep", "deer"])
    st.env["aplant"] = a(st.env["plant"])
    st.topics.append(("a", st.env["plant"]))
    st.s("{Day}, {X} planted {aplant} {spot}.", "{Day}, {X} wanted to grow {aplant}, so {he} put a seed {spot}.")
    st.q("plant", "{plant}", "{X} planted {aplant}.", "What did {X} plant?", "What did {X} grow?")
    st.q("where", "{spot}", "It was {spot}.", "Where did {X} plant it?", "Where was the {plant}?")
    st.s("{He} gave it water every day.", "Every morning {he} gave it water.", "{He} waited and waited.", "{X} took good care of it.")
    if end == "happy":
        st.s("Soon the {plant} was tall and strong.", "In spring, the {plant} was the best in the village.",
             "One day, the {plant} was as tall as {X}.")
        if rng.random() < 0.5:
            st.helper("friend sibling family")
            st.s("{X} showed it to {H}.", "{HC} came to see it.")
            st.q("visitor", "{hkey}", "{hC} saw the {plant}.", "Who saw the {plant}?", "Who did {X} show it to?")
        st.why("happy", "the {plant} grew tall")
        st.summary = st.fill("{X} planted {aplant} {spot}, and it grew tall.")
    elif end == "sad":
        st.env["why"] = rng.choice(["the cold", "the storm", "the hot sun", "the snow"])
        st.s("But {why} killed the {plant}.", "But because of {why}, the {plant} died.")
        st.q("cause", "{why}", "The {plant} died because of {why}.", "Why did the {plant} die?", "What killed the {plant}?")
        st.why("sad", "the {plant} died")
        st.summary = st.fill("{X} planted {aplant} {spot}, but it died.")
    else:
        st.s("But a {animal} came and ate it all.", "Then a {animal} ate the {plant}.")
        st.q("eater", "{animal}", "A {animal} ate the {plant}.", "Who ate the {plant}?", "Which animal ate the {plant}?")
        st.why("angry", "a {animal} ate the {plant}")
        st.summary = st.fill("{X} planted {aplant} {spot}, but a {animal} ate it.")
    st.close(end)


def plot_friend(st, end):
    """A friend is ill or goes away."""
    rng = st.rng
    st.opening(), st.day()
    y = st.person(0.2)
    st.put("Y", y)
    st.env["gift"] = rng.choice(["some soup", "a letter", "a book", "some flowers", "a cake", "some honey", "a picture", "a toy"])
    if rng.random() < 0.5:
        st.s("{Day}, {X}'s friend {Y} was ill.", "{Day}, {X} heard that {his} friend {Y} was ill.")
        st.q("ill", "{Y}", "{Y} was ill.", "Who was ill?", "Who was sick?")
        if end == "happy":
            st.s("So {X} brought {Y} {gift}.", "{X} went to {Y} and took {gift} along.")
            st.q("gift", "{gift}", "{X} brought {gift}.", "What did {X} bring {Y}?", "What did {X} bring?")
            st.s("Soon {Y} was well again.", "The next day, {Y} felt much better.", "After a week, {Y} could play again.")
            st.summary = st.fill("{X} brought {gift} to {Y}, who was ill, and {Y} got well.")
        else:
            st.s("They could not play together.", "{Y} had to stay in bed for a long time.")
            st.s("{X} was not allowed to visit {Y}.", "{X} sat at home and missed {Y}.")
            st.absent.append(("gift", [st.fill("What did {X} bring {Y}?")]))
            st.why("sad", "{Y} was ill")
            st.summary = st.fill("{Y} was ill, and {X} missed {Yhim}.")
    else:
        st.env["far"] = rng.choice(["the city", "the mountains", "the sea", "a far land", "the island", "the north"])
        st.s("{Day}, {X}'s friend {Y} moved to {far}.", "{Day}, {X}'s best friend {Y} went away to {far}.")
        st.q("moved", "{Y}", "{Y} went away.", "Who went away?", "Who moved away?")
        st.q("far", "{far}", "{Y} went to {far}.", "Where did {Y} go?", "Where did {Y} move?")
        st.s("They had played together every day.", "{X} missed {Yhim} very much.", "The house next door was empty now.")
        if end == "happy":
            st.feel("sad", final=False)
            st.q_feel("at first", "sad")
            st.s("But then {Y} sent {gift}.", "But one day, {Y} came back with {gift}.")
            st.q("gift", "{gift}", "{Y} " + ("sent" if "sent" in st.sentences[-1] else "brought") + " {gift}.",
                 "What did {Y} send?" if "sent" in st.sentences[-1] else "What did {Y} bring?")
            st.summary = st.fill("{X}'s friend {Y} went to {far} " + ("and sent {gift}." if "sent" in st.sentences[-1] else "and came back with {gift}."))
        else:
            st.o(0.5, "There was no letter and no call.", "Now {X} played alone.")
            st.why("sad", "{Y} went away")
            st.summary = st.fill("{X}'s friend {Y} went away to {far}.")
    st.q("relation", "{Y}", "The name of {X}'s friend was {Y}.", "What was the name of {X}'s friend?", "Who was {X}'s friend?")
    st.close(end)


PLOTS = {
    "happy": [plot_lost, plot_lost, plot_wish, plot_wish, plot_fear, plot_broken, plot_rescue, plot_rescue, plot_make,
              plot_trip, plot_race, plot_night, plot_share, plot_plant, plot_friend],
    "sad": [plot_lost, plot_lost, plot_wish, plot_broken, plot_rescue, plot_make, plot_trip, plot_race, plot_night,
            plot_share, plot_plant, plot_friend],
    "afraid": [plot_fear, plot_fear, plot_trip, plot_night],
    "angry": [plot_lost, plot_wish, plot_broken, plot_rescue, plot_make, plot_trip, plot_race, plot_share, plot_plant],
}
# Questions that a story may leave open altogether, asked when it tells nothing of the kind.
OPEN = {
    "lose": ["What did {X} lose?"], "want": ["What did {X} want?", "What did {X} wish for?"],
    "hear": ["What did {X} hear?"], "find": ["What did {X} find?"], "make": ["What did {X} make?"],
    "plant": ["What did {X} plant?"], "break": ["Who broke the {o}?"], "win": ["Who won the race?"],
    "place": ["Where did {X} go?"], "helper": ["Who helped {X}?"], "eat": ["What did they eat?"],
    "relation": ["What was the name of {X}'s friend?"], "ill": ["Who was ill?"], "fear": ["What was {X} afraid of?"],
    "colour": ["What colour was the {o}?", "What color was the {o}?"], "prize": ["What was the prize?"],
}
# What must not be told elsewhere for such a question to be open, besides its own kind.
ALSO = {"want": ["why"], "find": ["found", "lose"], "place": ["far"], "helper": ["giver", "with", "sharer", "fix", "forwhom"],
        "eat": ["food"], "relation": ["with", "rival", "break", "helper"], "make": ["own"], "plant": [], "win": ["rival"]}


def story(rng, feeling=None):
    """A story that ends with the feeling (drawn when none is given)."""
    st = Story(rng)
    feeling = feeling or rng.choice(FEELINGS)
    plot = rng.choice(PLOTS[feeling])
    st.plot = plot.__name__
    st.hero()
    plot(st, feeling)
    return st


def facts(rng):
    """A few plain facts about several people: a small exercise in keeping things apart."""
    st = Story(rng)
    st.plot = "facts"
    count = rng.choice([2, 3, 3, 4])
    things, colours = rng.sample(TOYS, count), rng.sample(COLOURS, count)
    places, foods = rng.sample(list(PLACES), count), rng.sample(FOODS, count)
    beasts = rng.sample(ANIMALS, count)
    past = rng.random() < 0.5
    has, is_, likes = ("had", "was", "liked") if past else ("has", "is", "likes")
    do = "did" if past else "does"
    lines = []
    for i in range(count):
        who = st.person(0.1)
        name, thing, shade, place, food, pet = who.name, things[i], colours[i], places[i], foods[i], beasts[i]
        kind = rng.choice("thing thing place food pet".split())
        if kind == "thing":
            lines.append(f"{name} {has} {a(shade)} {thing}.")
            st.q("own", thing, f"{name} {has} {a(shade)} {thing}.", f"What {do} {name} have?")
            st.q("owner", name, f"{name} {has} the {thing}.", f"Who {has} the {thing}?", f"Who {has} {a(shade)} {thing}?")
            st.q("colour", shade, f"The {thing} {is_} {shade}.", f"What colour {is_} the {thing}?",
                 f"What color {is_} the {thing}?", f"What colour {is_} {name}'s {thing}?")
        elif kind == "place":
            lines.append(f"{name} {is_} {PLACES[place]} the {place}.")
            st.q("place", place, f"{name} {is_} {PLACES[place]} the {place}.", f"Where {is_} {name}?")
            st.q("who", name, f"{name} {is_} {PLACES[place]} the {place}.", f"Who {is_} {PLACES[place]} the {place}?")
        elif kind == "food":
            lines.append(f"{name} {likes} {food}.")
            st.q("food", food, f"{name} {likes} {food}.", f"What {do} {name} like?")
            st.q("who", name, f"{name} {likes} {food}.", f"Who {likes} {food}?")
        else:
            pet_name = st.name(PETS)
            lines.append(f"{name} {has} {a(pet)} named {pet_name}.")
            st.q("petname", pet_name, f"The name of the {pet} {is_} {pet_name}.", f"What {is_} the name of the {pet}?",
                 f"What {is_} the name of {name}'s {pet}?")
            st.q("owner", name, f"{name} {has} {a(pet)}.", f"Who {has} {a(pet)}?")
            st.q("own", pet, f"{name} {has} {a(pet)}.", f"Which animal {do} {name} have?")
        if i == 0:
            st.env["X"] = name
    stranger = st.name(rng.choice([GIRLS, BOYS]))
    st.absent.append(("own", [f"What {do} {stranger} have?", f"Where {is_} {stranger}?", f"What {do} {stranger} like?"]))
    other = rng.choice([x for x in TOYS if x not in things])
    st.absent.append(("owner", [f"Who {has} the {other}?", f"What colour {is_} the {other}?"]))
    rng.shuffle(lines)
    st.sentences = lines
    return st


def held_out(st):
    """Whether the story belongs to the tenth of all combinations that training never sees."""
    first = st.env.get("o") or st.env.get("animal") or st.env.get("food") or st.env.get("place") or st.env.get("plant") or ""
    return zlib.crc32(f"{st.plot}|{st.env.get('X')}|{first}".encode()) % 10 == 0


def question(rng, st, absent=0.12):
    """A (kind, key, answer, question) about the story; sometimes one that it does not answer."""
    if rng.random() < absent:
        told = {kind for kind, *_ in st.questions}
        pool = list(st.absent)
        if st.plot != "facts":
            for kind, wordings in OPEN.items():
                if kind not in told and not told & set(ALSO.get(kind, [])) and kind != "colour":
                    noun = rng.choice([x for x in TOYS if x not in st.text])
                    pool.append((kind, [w.format(X=st.env["X"], o=noun) for w in wordings]))
            noun = rng.choice([x for x in TOYS if x not in st.text])
            pool.append(("colour", [w.format(o=noun) for w in OPEN["colour"]]))
            stranger = rng.choice([x for x in GIRLS + BOYS if x not in st.text])
            pool.append(("stranger", [w.format(X=stranger) for w in
                                      ("What did {X} want?", "How did {X} feel at the end?", "Where did {X} go?", "How old was {X}?",
                                       "What did {X} find?", "What did {X} have?", "Where did {X} live?")]))
        kind, wordings = rng.choice(pool)
        return kind, "does not say", UNKNOWN, rng.choice(wordings)
    # Kinds of question are drawn first so that one with many wordings is not drawn more often.
    kind, key, answer, wordings = rng.choice(st.questions)
    if kind == "colour":
        return kind, key, answer, rng.choice(wordings)
    return kind, key, answer, wordings[0] if rng.random() < 0.5 else rng.choice(wordings)


# --------------------------------------------------------------------------
# Conversations
# --------------------------------------------------------------------------

SYSTEM = ["You answer questions about a story.", "You are a helpful assistant.", "You are a small model that knows short stories.",
          "Answer the question about the text.", "You are a friendly helper. Answer in one short sentence.",
          "Answer only from the text.", "You help people to read short stories.", "Be brief."]
ASK = ["Text:\n{t}\n\nQuestion: {q}"] * 5 + [
    "{t}\n\n{q}", "Story:\n{t}\n\nQuestion: {q}", "Read the story and answer the question.\n\n{t}\n\nQuestion: {q}", "{t} {q}",
    "Text: {t}\n\nQuestion: {q}", "{t}\n\nQuestion: {q}", "Here is a story.\n{t}\n{q}", "{q}\n\n{t}", "Text:\n{t}\n\n{q}",
    "Question: {q}\n\nText:\n{t}"]
FOLLOW = ["{q}", "{q}", "Question: {q}", "And {q}"]
SUM_ASK = ["Text:\n{t}\n\nSummarize the text in one sentence."] * 4 + [
    "{t}\n\nSummarize the story in one sentence.", "Summarize: {t}", "Summarize this story:\n{t}", "Summarize the text in one sentence.\n\n{t}",
    "Text:\n{t}\n\nWhat happened? Say it in one sentence.", "Text: {t}\n\nSummarize the text.", "{t}\n\nSum up the story in one sentence.",
    "Story:\n{t}\n\nSummary:", "Give a short summary.\n\nText:\n{t}", "Text:\n{t}\n\nSummarize this in one line."]
SUM_FOLLOW = ["Summarize the text in one sentence.", "Summarize the story in one sentence.", "Summarize it.", "Sum up the story in one sentence."]
FEEL_ASK = ["Text:\n{t}\n\nHow does this text feel: {l}?"] * 5 + [
    "{t}\n\nHow does this story feel: {l}?", "{t}\n\nIs this {l}?", "Text:\n{t}\n\nHow does {X} feel? {l}", "{t}\n\nHow does {X} feel: {l}?",
    "What is the feeling of this text? Answer with one word: {l}.\n\n{t}", "Text:\n{t}\n\nWhich word fits best: {l}?",
    "Text:\n{t}\n\nWhat is the feeling: {l}?", "Text:\n{t}\n\nChoose one label: {l}.", "Text:\n{t}\n\nIs this text {l}?"]
FEEL_FOLLOW = ["How does this text feel: {l}?", "How does the story feel: {l}?", "Is it {l}?", "How does {X} feel: {l}?"]
TELL = ["Tell me a story about {w}.", "Write a story about {w}.", "Tell me a short story about {w}.", "Please write a short story about {w}.",
        "I want a story about {w}.", "Can you tell me a story about {w}?"]
TELL_FREE = ["Tell me a story.", "Write a short story.", "Tell me a story, please.", "Please tell me a story.", "Can you tell me a story?"]
CAN = "I can tell a short story, answer questions about a story, sum it up in one sentence and say how it feels."
SMALL = "I am a very small model. I only know short stories."
NONE = "Please give me a story first."
GREET = {
    "Hello! " + CAN: ["Hello!", "Hello", "Hi!", "Hi", "Hey!", "Hello there!", "Hi there!", "Good morning!", "Good day!", "Good evening!", "hello", "hi",
                      "Hey there", "Hello, who are you?", "Greetings!"],
    "I am a very small model that knows short stories. " + CAN: ["Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Are you a robot?"],
    CAN: ["What can you do?", "How can you help me?", "Help", "Help me.", "What do you do?", "Can you help me?", "What should I ask you?"],
    "You are welcome! Shall I tell you a story?": ["Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!", "thanks"],
    "I am well, thank you! Shall I tell you a story?": ["How are you?", "How are you today?", "How do you do?", "Are you well?"],
    "Goodbye! Come back for a story.": ["Bye!", "Goodbye!", "Bye", "See you!", "Good night!"],
    SMALL: ["What is the capital of France?", "What is two plus two?", "Write some code for me.", "Who is the president?", "What is the weather today?",
            "How far is the moon?", "Solve this equation.", "Translate this into French.", "What time is it?", "Write a poem.", "What is 2 + 2?",
            "Who wrote this book?", "How do I cook rice?", "What is physics?", "Explain how a computer works.", "Give me the news.", "What is a GPU?",
            "How many people live on Earth?", "What should I buy?", "Tell me a joke.", "Where is London?", "Why is the sky blue?"],
}


def labels(rng):
    """The four feelings as a list in words, mostly in the usual order."""
    four = list(FEELINGS)
    if rng.random() < 0.3:
        rng.shuffle(four)
    return rng.choice(["{}, {}, {} or {}", "{}, {}, {} or {}", "{}, {}, {} or {}", "{}, {}, {}, {}", "{}, {}, {}, or {}"]).format(*four)


def topic(rng, st):
    """Words for what the story is about, to be asked for it."""
    picks = [t for t in st.topics if t[1] in st.text]
    words = []
    picks = [t for t in picks if t[1] != st.who.kind] if rng.random() < 0.7 else [t for t in picks if t[1] != st.who.name]
    for article, noun in rng.sample(picks, min(len(picks), rng.choice([1, 1, 1, 2]))):
        if noun == st.who.name and rng.random() < 0.5:
            words.append(f"{a(st.who.kind)} named {noun}")
        else:
            words.append(noun if not article else f"the {noun}" if article == "the" else a(noun))
    return " and ".join(words)


def turns_about(rng, st, text, count, opened=False):
    """User and assistant turns about the story; the text stands in the first unless it is already told."""
    out, asked = [], set()
    for _ in range(count):
        kind = rng.choices(["ask", "sum", "feel"], [72, 13, 15])[0] if st.summary else "ask"
        if kind in asked:
            kind = "ask"
        asked.add(kind if kind != "ask" else None)
        if kind == "ask":
            _, _, answer, words = question(rng, st)
            if words in asked:
                continue
            asked.add(words)
            shape = rng.choice(FOLLOW if opened else ASK)
            if "And" in shape or rng.random() < 0.04:
                words = words[0].lower() + words[1:]
            if rng.random() < 0.05:
                words = words.rstrip("?")
            user = shape.format(t=text, q=words)
        elif kind == "sum":
            user, answer = rng.choice(SUM_FOLLOW if opened else SUM_ASK).format(t=text), st.summary
        else:
            user = rng.choice(FEEL_FOLLOW if opened else FEEL_ASK).format(t=text, l=labels(rng), X=st.env["X"])
            answer = st.feeling
        out += [("user", user), ("assistant", answer)]
        opened = True
    return out


def repeat(rng):
    """A list of words to be said again: the plainest exercise in copying."""
    words = [rng.choice(rng.choice([GIRLS, BOYS, PETS, TOYS, COLOURS, ANIMALS, FOODS, list(PLACES), TIMES, LOVES, SPOTS]))
             if rng.random() < 0.85 else made_up_name(rng) for _ in range(rng.choice([1, 2, 4, 6, 8, 12]))]
    text = rng.choice([", ", ", ", " "]).join(words)
    if rng.random() < 0.3:
        text = rng.choice(story(rng).sentences)
    return [("user", rng.choice(["Repeat: {t}", "Repeat after me: {t}", "Say this again: {t}", "Copy this text:\n{t}"]).format(t=text)),
            ("assistant", text)]


def drill(rng):
    """Long lists of words, to be said again or looked up in: nothing but copying and finding."""
    pool = GIRLS + BOYS + PETS + TOYS + COLOURS + ANIMALS + FOODS + list(PLACES)
    words = [made_up_name(rng) if rng.random() < 0.1 else word for word in rng.sample(pool, rng.choice([4, 6, 8, 12, 16, 24]))]
    text = rng.choice([" ", " ", ", "]).join(words)
    if rng.random() < 0.6:
        out = [("user", rng.choice(["Repeat: {t}", "Repeat after me: {t}", "Say this again: {t}", "Copy this text:\n{t}"]).format(t=text)),
               ("assistant", text)]
        return out + ([("user", "Once more."), ("assistant", text)] if rng.random() < 0.5 else [])
    out, ask = [], text + "\n\n"
    for i in rng.sample(range(len(words) - 1), min(len(words) - 1, 8)):
        out += [("user", ask + f"What comes after {words[i]}?"), ("assistant", f"After {words[i]} comes {words[i + 1]}.")]
        ask = ""
    return out


# How often each kind of example comes, and how often at times when copying is to be learned.
MIX = {"about": 55, "facts": 14, "raw": 12, "tell": 14, "greet": 2, "repeat": 3}
EARLY_MIX = {"about": 35, "facts": 35, "raw": 4, "tell": 5, "greet": 1, "repeat": 20}
DRILL_MIX = {"about": 35, "facts": 28, "raw": 3, "tell": 4, "greet": 1, "repeat": 0, "drill": 29}
LATE_MIX = {"about": 50, "facts": 18, "raw": 8, "tell": 10, "greet": 2, "repeat": 2, "drill": 10}
FACTS_MIX = {"about": 45, "facts": 32, "raw": 5, "tell": 8, "greet": 1, "repeat": 1, "drill": 8}
MIXES = {"usual": MIX, "early": EARLY_MIX, "drill": DRILL_MIX, "late": LATE_MIX, "facts": FACTS_MIX}


def example(rng, mix="usual", accept=lambda st: not held_out(st)):
    """One training example: a str (a plain document) or a list of (role, content) turns."""
    mix = MIXES[mix]
    kind = rng.choices(list(mix), list(mix.values()))[0]
    if kind == "repeat":
        return repeat(rng)
    if kind == "drill":
        return drill(rng)
    system = [("system", rng.choice(SYSTEM))] if rng.random() < 0.2 else []
    if kind == "greet":
        if rng.random() < 0.15:
            st = story(rng)
            return system + [("user", question(rng, st, 0)[3]), ("assistant", NONE)]
        answer = rng.choice(list(GREET))
        return system + [("user", rng.choice(GREET[answer])), ("assistant", answer)]
    while True:
        st = facts(rng) if kind == "facts" else story(rng)
        if accept(st):
            break
    if kind in ("about", "facts"):
        text = st.text
        form = rng.random()
        if form < 0.05 and len(st.sentences) > 3:   # two paragraphs
            cut = rng.randrange(1, len(st.sentences))
            text = " ".join(st.sentences[:cut]) + "\n\n" + " ".join(st.sentences[cut:])
        elif form < 0.08:   # a sentence a line
            text = "\n".join(st.sentences)
        elif form < 0.1:
            text += "\n"
        out = system + turns_about(rng, st, text, rng.choice([1, 2, 3, 4, 5, 6]))
        if rng.random() < 0.03:
            thanks = next(x for x in GREET if x.startswith("You are welcome"))
            out += [("user", rng.choice(GREET[thanks])), ("assistant", thanks)]
        return out
    if kind == "raw":
        return st.text
    free = rng.random()
    if free < 0.2:
        ask = rng.choice(TELL_FREE)
    elif free < 0.35:
        ask = rng.choice(["Tell me {} story.", "Write {} story.", "Write {} story about " + topic(rng, st) + "."]).format(
            a({"afraid": "scary"}.get(st.feeling, st.feeling)))
    else:
        ask = rng.choice(TELL).format(w=topic(rng, st))
    out = system + [("user", ask), ("assistant", st.text)]
    if rng.random() < 0.3:
        out += turns_about(rng, st, st.text, rng.choice([1, 2]), opened=True)
    elif rng.random() < 0.1:
        other = story(rng)
        while not accept(other):
            other = story(rng)
        out += [("user", rng.choice(["Tell me another story.", "Another one, please.", "One more story, please."])), ("assistant", other.text)]
    return out


def examples(seed, count, start=0, mix="usual"):
    """The examples start..start+count of a seed."""
    for i in range(start, start + count):
        yield example(random.Random(f"{seed}/{i}"), mix)


def unseen(seed, count, make=story):
    """Stories of the held-out combinations only."""
    i = 0
    while count:
        rng = random.Random(f"unseen/{seed}/{i}")
        st = make(rng)
        i += 1
        if held_out(st):
            count -= 1
            yield rng, st


if __name__ == "__main__":
    seed = sys.argv[1] if len(sys.argv) > 1 else "1"
    for item in examples(seed, int(sys.argv[2]) if len(sys.argv) > 2 else 5):
        print(item if isinstance(item, str) else "\n".join(f"<{role}> {content}" for role, content in item))
        print("-" * 60)
