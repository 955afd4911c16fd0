"""Packaged instructions and texts for `codecprobe lens`, in English.

NEUTRALS say in many words that nothing special is wanted: how far they lie apart is what wording alone does. The first
is the one the frames are generated under; the others are compared. They are 3 to 17 words long, so that the length of a
style instruction usually lies between theirs. TEXTS are short, everyday, and of no particular mood.
"""

NEUTRALS = (
    "Speak in a normal, neutral voice.",
    "Read this in a plain, ordinary way.",
    "Say it normally.",
    "Use your usual voice.",
    "Talk as you always do, without any special style.",
    "Please read the sentence in an everyday tone.",
    "Speak at a normal pace and a normal volume.",
    "Read the text aloud in a standard manner.",
    "Just read it.",
    "Say the words in a common, unremarkable way.",
    "Keep the voice neutral and the pace average.",
    "Use a regular speaking voice for this sentence.",
    "Read this out as in an ordinary conversation.",
    "No special expression is needed; read it as it stands.",
    "Speak the way most people speak on most days.",
    "Pronounce the sentence in the default manner.",
    "Deliver the line in a typical, even way, neither fast nor slow, neither loud nor soft.",
    "Your normal voice is fine.",
    "Say this with no particular feeling and no particular emphasis.",
    "Simply speak the following words in a conventional tone.",
    "Read along as you would read any other sentence.",
    "An average tone and an average speed, please.",
    "Speak plainly and as usual.",
    "Use the voice you would use for any text.",
)

TEXTS = (
    "The bus stops at the corner every ten minutes.",
    "There are two chairs and a table in the room.",
    "She put the letters on the desk by the window.",
    "We will meet at the station on Thursday.",
    "The shop on the second floor sells paper.",
    "He walked along the river to the bridge.",
    "My cousin works in the library next door.",
    "The recipe asks for flour, water and salt.",
)
