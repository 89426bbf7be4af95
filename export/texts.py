"""Realistic inputs for parity and golden vectors: several languages and lengths, and what breaks tokenizers."""

from __future__ import annotations

# Short to long, in many scripts: what people type and say to a phone, and what they read on it.
SENTENCES = (
    "Wake me up at seven tomorrow morning.",
    "ok",
    "Réveille-moi à sept heures, s'il te plaît.",
    "내일 아침 일곱 시에 깨워 줘.",
    "Was kostet eine Fahrkarte nach München am Wochenende?",
    "今天晚上八点提醒我给妈妈打电话。",
    "明日の天気を教えてください。傘は必要ですか?",
    "¿Puedes poner música tranquila en el salón?",
    "ذكّرني بشراء الخبز والحليب غدًا.",
    "कल सुबह की ट्रेन कितने बजे है?",
    "พรุ่งนี้ฝนจะตกไหม",
    "The invoice of 3,499.99 € is due on 2024-02-29; see https://example.com/invoices?id=42&lang=fr.",
    "She said: \"It's not the film I'd have chosen, but I didn't hate it — far from it.\"",
    "Der Vertrag wurde am 3. Oktober in Berlin von Frau Dr. Müller-Lüdenscheidt unterzeichnet.",
    "Angela Merkel a rencontré Emmanuel Macron à Strasbourg avant le sommet de l'Union européenne.",
    "Turn the living room lights to forty percent and play some jazz from the nineteen fifties please",
    "Большое спасибо за быстрый ответ, но посылка так и не пришла.",
    "This restaurant was a disappointment: slow service, cold food, and a bill twice what the menu said.",
    "Absolutely loved it! Best purchase of the year so far 😍🎉",
    "no",
)

# (text, second text): premise and hypothesis, question and passage.
PAIRS = (
    ("A man is playing a guitar on the street.", "Someone makes music outdoors."),
    ("Qui a écrit ce rapport?", "Le rapport a été écrit par Claire Dubois en 2019, puis révisé par son équipe à Lyon."),
    ("회의는 언제 시작하나요?", "회의는 오후 세 시에 본관 이층 회의실에서 시작하고 한 시간 동안 진행됩니다."),
    (
        "Where was the treaty signed?",
        "After months of negotiation the two governments agreed on a text in late spring. The treaty was signed in the "
        "town hall of Münster in October, in front of a small crowd, and came into force the following year.",
    ),
)

CHOICES = (
    ("The dog ran after the ball because", ("it wanted to play.", "the sky is blue.", "seven is a prime number.")),
    ("Pour faire une omelette, il faut d'abord", ("casser des œufs.", "repeindre la cuisine.", "vendre la voiture.")),
    ("비가 와서 나는", ("우산을 썼다.", "달을 먹었다.", "산을 접었다.")),
)

# Text that separates tokenizers that are nearly right from those that are.
PROBES = (
    ("empty", ""),
    ("spaces", "   \t  "),
    ("accents NFC", "café naïve Ångström"),
    ("accents NFD", "cafe\u0301 nai\u0308ve A\u030angstro\u0308m"),
    ("hangul composed", "한국어 문장입니다"),
    ("hangul decomposed", "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165"),
    ("CJK without spaces", "自然言語処理と机器学习は面白い"),
    ("half-width kana", "ﾃｽﾄ ＡＢＣ １２３"),
    ("emoji with joiners", "👩‍👩‍👧‍👦 👍🏽 🇫🇷 ❤️"),
    ("control characters", "tab\there\u0000nul\u0007bell\u200bzero\u00adsoft\ufeffbom"),
    ("line ends", "first\r\nsecond\nthird\r"),
    ("long word", "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 3),
    ("punctuation", "!?...—“quoted”‘single’«guillemets»…‽#@&*()[]{}<>|\\/~`^_+="),
    ("special tokens as text", "[CLS] a [SEP] b [MASK] <s> c </s> <mask> <pad> <unk>"),
    ("digits", "007 3.14159 1,000,000 ½ ² ④ ٣"),
    ("private use", "\ue000 \uf8ff \U000f0000"),
    ("math and arrows", "∀x∈ℝ: x²≥0 → ∑ƒ(x)≈∞"),
)

LONG = " ".join(SENTENCES[index % len(SENTENCES)] for index in (0, 11, 12, 13, 14, 15, 17, 2, 18)) + " "
