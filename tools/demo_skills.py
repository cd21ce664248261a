"""The two skills of the demo members: questions and answers made by code, with a held-out part of the values.

dates: a date in English to YYYY-MM-DD; held out are whole days. extract: a sentence about a person to one line
of JSON; held out are first names and cities. No held-out value occurs in a training question.
"""

import json
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random
from typing import Literal

Skill = Literal["dates", "extract"]
SKILLS: tuple[Skill, ...] = ("dates", "extract")


def listed(text: str) -> list[str]:
    """The entries of a comma-separated text."""
    return text.split(", ")


@dataclass(frozen=True)
class Item:
    """One question of a skill and the only answer that counts."""

    skill: Skill
    question: str
    answer: str


DATE_ASKS = (
    "Write this date as YYYY-MM-DD: {}",
    "Convert this date to YYYY-MM-DD: {}",
    "{} in YYYY-MM-DD format",
)
DATE_STYLES = (
    "{month} {day}, {year}",
    "{day} {month} {year}",
    "{short} {day}, {year}",
    "{day} {short} {year}",
    "{month} {nth}, {year}",
    "the {nth} of {month} {year}",
    "{weekday}, {month} {day}, {year}",
)
FIRST_DAY, DAYS = date(1950, 1, 1), 100 * 365  # to the end of 2049, nearly
MONTHS = listed("January, February, March, April, May, June, July, August, September, October, November, December")
WEEKDAYS = listed("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")


def nth(number: int) -> str:
    """The ordinal of a day of the month: 1st, 2nd, 3rd, 4th, 11th, 21st."""
    ending = "th" if number in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def is_held_out(day: date) -> bool:
    """Whether this day belongs to the test: one day in eleven."""
    return day.toordinal() % 11 == 0


def date_item(random: Random, held_out: bool) -> Item:
    """A date in one of the written styles, to be written as YYYY-MM-DD."""
    day = FIRST_DAY + timedelta(random.randrange(DAYS))
    while is_held_out(day) != held_out:
        day = FIRST_DAY + timedelta(random.randrange(DAYS))
    month = MONTHS[day.month - 1]
    words = {"month": month, "short": month[:3], "nth": nth(day.day), "weekday": WEEKDAYS[day.weekday()]}
    written = random.choice(DATE_STYLES).format(day=day.day, year=day.year, **words)
    return Item("dates", random.choice(DATE_ASKS).format(written), day.isoformat())


EXTRACT_ASKS = (
    "Give name, age and city as one line of JSON: {}",
    "Extract the name, age and city as JSON on one line: {}",
    "{} Name, age and city as one line of JSON?",
)
SENTENCES = (
    "{name}, {age}, lives in {city}.",
    "{name} is {age} years old and lives in {city}.",
    "{name} ({age}) moved from {other} to {city}.",
    "My friend {name} is {age} and works as a {job} in {city}.",
    "In {city} I met {name}, a {age}-year-old {job}.",
    "Born in {other}, {name} now lives in {city} at {age}.",
    "{name}, a {job} from {city}, turned {age} last week.",
    "At {age}, {name} left {other} for {city}.",
)
JOBS = listed("teacher, nurse, baker, driver, painter, lawyer, farmer, singer, chemist, plumber, waiter, pilot")
NAMES = listed(
    "Anna, Tom, Laura, Peter, Julia, Mark, Sofia, Daniel, Emma, Paul, Nina, Lucas, Clara, Simon, Alice, "
    "Martin, Elena, David, Sarah, Victor, Irene, Hugo, Marta, Felix, Ruth, Oscar, Diana, Leo, Helen, "
    "Ivan, Rosa, George, Amir, Yuki, Priya, Chen, Fatima, Omar, Ingrid, Kofi, Carmen, Boris, Leila, Sven, "
    "Aisha, Pablo, Mei, Olga, Raj, Nadia, Jack, Grace, Henry, Lucy, Frank, Vera, Adam, Zoe, Max, Eva, "
    "Beth, Brian, Cecilia, Dora, Erik, Fiona, Gloria, Hassan, Ines, Jorge, Katrin, Lars, Miguel, Norah, "
    "Otto, Penelope, Quentin, Rita, Samuel, Teresa, Ursula, Vincent, Wanda, Xavier, Yusuf, Zelda, "
    "Bridget, Claudio, Darius, Esther, Gustav, Hiroshi, Isabel, Joachim"
)
CITIES = listed(
    "Paris, London, Rome, Berlin, Madrid, Lisbon, Vienna, Prague, Athens, Dublin, Warsaw, Budapest, "
    "Helsinki, Stockholm, Brussels, Tokyo, Seoul, Beijing, Bangkok, Delhi, Cairo, Nairobi, Lagos, Tunis, "
    "Boston, Chicago, Denver, Seattle, Toronto, Montreal, Havana, Bogota, Santiago, Sydney, Auckland, "
    "Istanbul, Moscow, Kyiv, Geneva, Milan, Hamburg, Porto, Seville, Krakow, New York, Hong Kong, San "
    "Diego, Cape Town, Tel Aviv, Buenos Aires, Salzburg, Bremen, Utrecht, Antwerp, Basel, Lugano, Verona, "
    "Bologna, Palermo, Valencia, Bilbao, Granada, Gdansk, Brno, Zagreb, Split, Izmir, Ankara, Aleppo, "
    "Amman, Muscat, Karachi, Mumbai, Kolkata, Hanoi, Jakarta, Kyoto, Nagoya, Busan, Perth, Brisbane, "
    "Wellington, Quito, Caracas, Medellin, Tijuana, Ottawa, Calgary, Phoenix, Houston, Memphis, Omaha, "
    "Tucson, Accra, Kampala, Harare, Lusaka"
)
HELD_OUT_NAMES = listed(
    "Maria, Karl, Beatrice, Ahmed, Linda, Tobias, Chloe, Stefan, Mina, Edward, Paula, Dmitri, Hannah, Luis, Akira"
)
HELD_OUT_CITIES = listed(
    "Oslo, Lima, Zurich, Munich, Naples, Manila, Dakar, Dallas, Vancouver, Melbourne, Riga, Osaka, Kuala "
    "Lumpur, Los Angeles, San Jose"
)


def extract_item(random: Random, held_out: bool) -> Item:
    """A sentence about a person, to be turned into one line of JSON with name, age and city."""
    name = random.choice(HELD_OUT_NAMES if held_out else NAMES)
    city, other = random.sample(HELD_OUT_CITIES if held_out else CITIES, 2)
    age = random.randint(18, 89)
    words = {"name": name, "city": city, "other": other, "job": random.choice(JOBS)}
    sentence = random.choice(SENTENCES).format(age=age, **words)
    answer = json.dumps({"name": name, "age": age, "city": city})
    return Item("extract", random.choice(EXTRACT_ASKS).format(sentence), answer)


MAKERS = {"dates": date_item, "extract": extract_item}


def items(skill: Skill, count: int, seed: int, held_out: bool) -> list[Item]:
    """Different questions of a skill, the same for the same seed."""
    random, found = Random(f"{skill} {seed}"), dict[str, Item]()
    while len(found) < count:
        item = MAKERS[skill](random, held_out)
        found.setdefault(item.question, item)
    return list(found.values())
