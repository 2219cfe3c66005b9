"""What Lynx was trained on, as data: its sources with their sampling shares (reference, section 4;
the paper's Table 9) and prompts for each task, in the manner of its Table 10.

The paper wrote at least three prompts for a task and had fifteen more paraphrased; it does not list
them. Those here are our own sentences. `mmjax.data.sources.prompted` puts them around records.

Where a source is not to be had, leave it out of a mixture: shares are relative.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Share:
    """A source of the mixture.

    Attributes:
      share: of the rows of its stage, in %.
      prompts: which of `PROMPTS` its records are asked with; None where they have instructions of
        their own.
      shows: what a record shows.
    """

    share: float
    prompts: str | None
    shows: str = "picture"


def _shares(prompts: str | None, shows: str = "picture", **shares: float) -> dict[str, Share]:
    return {name: Share(share, prompts, shows) for name, share in shares.items()}


PRETRAIN = (
    _shares(
        "caption",
        blip_capfilt=30.525, cc12m=2.465, cc3m=10.076, sbu=2.987, textcaps=0.381, coco=0.287,
        cuhk_pedes=0.118, flickr30k=0.104, pexels_110k=0.091, iapr_tc12=0.069,
        pascal_sentences=0.003,
    )
    | _shares(
        "vqa", vgqa=8.711, gqa=5.868, vqav2=2.761, visual7w=0.870, vizwiz=0.128, okvqa=0.056,
        tdiuc=4.389,
    )
    | _shares("text_vqa", ocrvqa=5.364)
    | _shares("place", places365=10.921)
    | _shares("object", imagenet1k=7.887)
    | _shares("entailment", snli_ve=3.213)
    | _shares("choice", visual7w_choice=0.849)
    | _shares("food", aircrowdfood=0.609)
    | _shares("yes_no", nlvr2=0.518, hateful_memes=0.026)
    | _shares("style", wikiart=0.264)
    | _shares("action", har=0.078)
    | _shares("time", time_classification=0.072)
    | _shares(None, invig=0.310)
)  # fmt: skip
"""Name -> share in pretraining, at 224 and 420 pixels; 100 in all."""

FINETUNE = (
    _shares("detailed_caption", llava_caption=0.945, minigpt4=0.138)
    | _shares("caption", vg_caption=0.798)
    | _shares(
        "vqa", vgqa=10.880, gqa=3.999, vqav2=3.449, visual7w=0.593, vizwiz=0.087, okvqa=0.038
    )
    | _shares("text_vqa", ocrvqa=12.349, websrc=1.814, textvqa=0.478, stvqa=0.359)
    | _shares(None, llava_reasoning=3.119)
    | _shares("place", places365=5.000)
    | _shares("yes_no", nlvr2=0.671)
    | _shares("style", wikiart=0.180)
    | _shares("action", har=0.053)
    | _shares("time", time_classification=0.049)
    | _shares(
        "video_vqa", "video", msrvtt_qa=3.137, vln_vqa=0.629, next_qa=0.623, msvd_qa=0.611
    )
    | _shares("video_caption", "video", sthv2_caption=5.000, vln_caption=5.000)
    | _shares(None, llava_instruction=5.845, llava_dialog=4.155)
    | _shares(
        None, "text", flan_v2=15.000, oig_small=3.884, alpaca_gpt4=0.955,
        unnatural_instructions=0.161, baize=10.000,
    )
)  # fmt: skip
"""Name -> share in fine-tuning; 99.999 in all."""

PROMPTS: dict[str, tuple[str, ...]] = {
    "caption": (
        "Describe the image briefly.",
        "Describe the image in one sentence.",
        "What does this image show? Answer shortly.",
        "Give a short caption for this picture.",
        "Sum up what can be seen here in a few words.",
        "Write one line that would fit under this picture.",
    ),
    "detailed_caption": (
        "Describe the image in detail.",
        "Tell me everything that you can see in this picture.",
        "What is going on in the image? Explain it thoroughly.",
        "Give a full account of this picture, its objects and where they are.",
        "Write a paragraph about what the image shows.",
        "Look closely at the picture and describe all of it.",
    ),
    "video_caption": (
        "Describe the video briefly.",
        "What happens in this video?",
        "Say in one sentence what is done in the clip.",
        "Give a short caption for this video.",
        "Sum up what takes place here.",
        "Which action does the clip show? Describe it.",
    ),
    "vqa": (
        "{question} Give a short answer.",
        "{question} Answer in a word or two.",
        "Look at the image and answer briefly: {question}",
        "{question} Keep your answer as short as you can.",
        "Here is a question about the picture: {question} Reply with a few words.",
        "{question} No sentence is needed, the answer alone will do.",
    ),
    "video_vqa": (
        "{question} Give a short answer.",
        "Watch the video and answer briefly: {question}",
        "{question} Answer in a word or two, by what the clip shows.",
        "Here is a question about the video: {question} Reply with a few words.",
        "{question} Keep your answer as short as you can.",
    ),
    "text_vqa": (
        "Read the text in the image and answer: {question}",
        "{question} Answer by reading what is written there.",
        "{question} The answer can be read in the picture; give it shortly.",
        "Use the words that you can read in the image. {question}",
        "{question} Look for it in the text of the picture and quote it.",
    ),
    "yes_no": (
        "{question} Answer yes or no.",
        "Is the following right? {question} Say yes or no.",
        "{question} Reply with yes or with no, nothing else.",
        "Judge by the image: {question} Yes or no?",
    ),
    "choice": (
        "{question} Choose one of the options.",
        "{question} Which of these answers is right?",
        "Pick the option that fits the image. {question}",
        "{question} Answer with one of the choices given.",
    ),
    "entailment": (
        "{question} Does this follow from the image: yes, no, or maybe?",
        "By the image alone, is it true that: {question} Say yes, no or maybe.",
        "Here is a statement: {question} Does the picture support it, contradict it or neither?",
        "{question} Tell whether the image implies this; answer yes, no or maybe.",
    ),
    "place": (
        "Where is this? Answer with a place name.",
        "What kind of place is shown here?",
        "Name the scene of this picture in a word or two.",
        "In what place was this image taken? Give its kind.",
    ),
    "object": (
        "What is the main object in this image? Answer with its name.",
        "Name what this picture shows.",
        "Which thing or animal is this? Give its name.",
        "What is seen here? Reply with one name.",
    ),
    "food": (
        "What food is this? Answer with its name.",
        "Name the dish in the image.",
        "Which food can be seen here?",
        "What is on the plate? Give the name of the food.",
    ),
    "style": (
        "In which style is this painted? Answer with its name.",
        "Name the style of this work of art.",
        "To which art movement does the picture belong?",
        "What kind of painting is it? Give its style.",
    ),
    "action": (
        "What is the person doing? Answer with the action.",
        "Name the action in this image.",
        "Which activity can be seen here?",
        "What is going on? Reply with a word or two for the action.",
    ),
    "time": (
        "What time does the clock show?",
        "Read the clock in the image and tell the time.",
        "Which time is it by this picture?",
        "Tell me the time that can be read here.",
    ),
}
"""Task -> prompts, the plainest first; ``{question}`` is the record's own text, and prompts without
it are for records that show something and ask nothing."""
