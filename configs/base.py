"""Every key of a run, once, with its default. A config starts from here and changes values; a misspelt key fails.

    from configs import base

    def get_config():
        config = base.get_config()
        config.gamma = 0.2
        return config

Symbols in brackets are the paper's (arXiv 2506.03106).
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Returns the defaults: Critique-GRPO as in the paper, on a model and data that a configuration must name."""
    c = config_dict.ConfigDict()

    # --- the run
    c.seed = 0
    c.num_iterations = 100  # one iteration: respond, critique, refine, update
    c.checkpoint_every = 50  # iterations; the last is always saved
    c.checkpoints_to_keep = 2
    c.samples_every = 1  # iterations between entries of samples.jsonl
    c.samples_per_iteration = 4  # questions written there
    c.profile_steps = ()  # iterations, from 0, that are traced into WORKDIR/profile: --config.profile_steps=3,4

    # --- respond
    c.questions_per_iteration = 128
    c.num_responses = 7  # [n]
    c.temperature = 1.0
    c.top_p = 1.0  # below 1, or top_k above 0, needs old_logp = "trainer"
    c.top_k = 0
    c.max_prompt_length = 2048  # tokens, as all lengths
    c.max_response_length = 6144  # of responses and refinements
    c.on_long_question = "skip"  # or "error"
    c.system_prompt = ""
    c.question_prompt = "{question}"
    c.stop = ()  # strings after which a text ends, beside the model's end-of-turn tokens

    # --- the engine that samples all stages
    c.num_slots = 64  # texts that a data group (one coordinate of replica and fsdp) decodes at once; 0: see below
    c.kv_cache_gib = 0.0  # GiB a device of keys and values, where num_slots is 0: as many slots as it holds
    c.prompt_bucket = 64  # prompts are padded to this, twice this, four times this, ...
    c.decode_chunk = 64  # tokens a text, after which the host looks again even if no text has ended
    c.cache_dtype = ""  # of keys and values; empty: compute_dtype. "int8" takes half of bfloat16

    # --- reward
    c.reward_source = "verifier"  # or "critic": the verdict is the reward (unsupervised)
    # Of problems whose data names none: math, numeric, choice, exact, trace, code, judge, or your own function with the
    # signature of TRL's, "FILE.py:name" or "package.module:name".
    c.grader = "math"
    c.grader_timeout = 5.0  # seconds a row
    c.grader_workers = 2  # processes
    c.grader_tolerance = 1e-6  # of numeric, relative
    c.grader_messages = False  # your function gets lists of messages, as TRL's do with conversational data, not texts
    c.judge = config_dict.ConfigDict()  # of grader judge: an OpenAI-compatible endpoint that goes through checklists
    c.judge.url = ""  # such as "http://host:8000/v1"
    c.judge.model = ""  # its name there
    c.judge.key_variable = ""  # environment variable with the API key; empty: none is sent
    c.judge.concurrency = 16  # requests at a time
    c.judge.timeout = 60.0  # seconds an attempt
    c.judge.max_attempts = 4  # at having a reply
    c.judge.max_retries = 2  # of a reply that can't be read
    c.judge.max_reply_length = 1024  # tokens
    c.pass_threshold = 1.0

    # --- critique
    c.critique = "cot"  # indicative, indicative_gt, execution, cot, none (refine without a critique)
    c.critique_schedule = ()  # other kinds from given iterations on, such as ((0, "indicative_gt"), (100, "cot"))
    c.critique_when = "refining"  # or "all"
    c.critic_folder = ""  # Hugging Face folder of a frozen critic; empty: the policy critiques itself
    c.critic_sees_answer = False
    c.http_critic = config_dict.ConfigDict()  # an OpenAI-compatible endpoint that writes the critiques instead
    c.http_critic.url = ""  # such as "http://host:8000/v1"
    c.http_critic.model = ""  # its name there
    c.http_critic.key_variable = ""  # environment variable with the API key; empty: none is sent
    c.http_critic.concurrency = 16  # requests at a time
    c.http_critic.timeout = 60.0  # seconds an attempt
    c.http_critic.max_attempts = 4
    c.http_critic.max_requests = 0  # until it ends or is resumed; 0: no limit. Beyond it critiques are indicative
    c.http_critic.max_tokens = 0  # likewise, in sampled tokens
    c.execution_reveals_value = True  # False names the wrong step, or the failing test, without what is expected
    c.step_checker = "equations"  # or "chain", which knows the steps that the question asks for
    c.max_retries = 2  # of a cot critique whose verdict is malformed or disagrees with the verifier
    c.num_critiques = 1  # for each response
    c.max_critique_length = 1024
    c.max_critique_prompt_length = 9216
    c.critique_prompt = ""  # empty: the default in critiques.py
    c.critique_prompt_with_answer = ""

    # --- refine, select
    c.refine = "policy"  # none: plain GRPO; solution: insert the data's own solution instead (an ablation)
    c.refine_max_pass = 0.0  # refine a question if at most this share of its responses pass
    c.refinements_per_critique = 1
    c.num_refinements = 1  # [k] kept a question
    c.max_refinement_prompt_length = 10240
    c.drop_critique_mentions = False  # drop refinements that mention the critique before selection
    c.refine_prompt = ""
    c.refine_prompt_without_critique = ""

    # --- objective
    c.gamma = 0.1  # [gamma]
    c.scale_by_std = False
    c.clip_low = 0.2
    c.clip_high = 0.2
    # Departure: the released code clips neither side; the paper's equations clip both.
    c.clip_initial = True
    c.clip_refined = True
    # Departure: "constant", as in the released code; Eq. 3 and 4 are "paper". Also token_mean and sequence_mean.
    c.aggregate = "constant"
    c.kl_coef = 0.0
    c.entropy_coef = 0.0  # Departure: 0.001 in the released code
    c.old_logp = "sampler"  # or "trainer": recomputed before the update

    # --- update
    c.updates_per_batch = 2  # minibatches an iteration
    c.optimizer = "adamw"  # or "adafactor": statistics of rows and columns in the place of two of every weight
    c.learning_rate = 1e-6  # the peak of the schedule
    c.schedule = "constant"  # after the warm-up; or linear, cosine: it falls until the last of num_iterations
    c.warmup_updates = 0  # over which the rate rises from 0
    c.final_learning_rate_share = 0.0  # of the peak, that linear and cosine fall to
    c.weight_decay = 0.0  # of matrices and embeddings, times the rate
    c.adam_b1 = 0.9
    c.adam_b2 = 0.999
    c.adam_mu_dtype = ""  # of Adam's first moment; empty: float32, as weights and gradients are. Or "bfloat16"
    c.offload_optimizer = False  # the optimiser's state lies in the hosts' memory between updates
    c.max_grad_norm = 1.0
    c.max_nonfinite_updates = 3  # skipped in a row because the gradient is not finite; one more ends the run
    c.pack_rows = 1  # token rows of a data group in a packed batch
    c.pack_length = 0  # tokens in one, best a multiple of 128; 0: longest prompt and response
    c.pack_slots = 0  # train rows in a packed batch; 0: 64 a token row
    # What of a layer the backward pass computes anew: "layer" all of it, "mlp" the MLP, "none" only what is
    # element-wise; the less, the faster, and the more memory.
    c.remat = "layer"

    # --- mesh: how the devices of all processes are divided; their product is the number of devices
    c.mesh = config_dict.ConfigDict()
    c.mesh.replica = 1  # whole copies of the model
    c.mesh.fsdp = 0  # shares of the weights and of the optimiser's state, gathered layer by layer; 0: all that is left
    c.mesh.tensor = 1  # shares of heads, MLP and vocabulary, each computed where it lies
    c.compute_dtype = ""  # of generation, forward and backward pass; empty: bfloat16, on a CPU float32

    # --- model: a Hugging Face folder, or a shape that is initialised at random
    c.model = config_dict.ConfigDict()
    c.model.folder = ""
    c.model.tokenizer = ""  # folder; empty: the model's own. "arithmetic", "snippets": those of the package
    c.model.architecture = ""  # file configs/architectures/NAME.json: to plan a run before its weights are at hand
    c.model.init = ""  # folder of another run, or of a converted checkpoint, to take the weights from
    c.model.num_layers = 0
    c.model.embed_dim = 0
    c.model.num_heads = 0
    c.model.num_kv_heads = 0
    c.model.mlp_dim = 0
    c.model.max_context = 0

    # --- LoRA: train low-rank adapters of frozen weights instead of the weights
    c.lora = config_dict.ConfigDict()
    c.lora.rank = 0  # 0: train all weights
    c.lora.alpha = 32.0  # the adapters' product is multiplied by alpha / rank
    c.lora.targets = ("q", "k", "v", "o", "gate", "up", "down")

    # --- data
    c.data = config_dict.ConfigDict()
    c.data.kind = "jsonl"  # jsonl, parquet, tfds; made up: chains (arithmetic), snippets (code)
    c.data.seed = 0  # of made-up questions and what is held out; the order of questions follows the run's seed
    c.data.train = ""  # file, or TFDS name; several: "gsm8k,openr1"
    c.data.eval = ""  # likewise
    c.data.mixture = ""  # shares of several, such as "gsm8k:0.3,openr1:0.7"; empty: each question as often as any other
    c.data.train_split = "train"  # of a TFDS data set; of several, one for all or one each: "train,test"
    c.data.eval_split = "test"
    c.data.tfds_dir = ""
    # Columns; a data set written by `python -m cgrpo_jax.data prepare` knows its own, and which grader it needs.
    c.data.question_key = "question"  # several columns: "Body,Question"
    c.data.answer_key = "answer"
    c.data.solution_key = ""
    c.data.answer_pattern = ""  # its first group is the answer
    c.data.num_train = 0  # of each set; 0: all
    c.data.num_eval = 0
    c.data.pass_rates = ""  # JSON lines of how often each training question was solved: id, pass_rate
    c.data.min_pass_rate = 0.0  # train on questions above this, and below the other; -1 keeps those never solved
    c.data.max_pass_rate = 1.0  # 2 keeps those always solved
    c.data.chain_length = 3  # steps of a chain, operations of a snippet
    c.data.num_held_out = 0  # facts, or words, that the warm start never shows
    c.data.hard_share = 0.0  # share of the questions with one of them

    # --- warm start: supervised lessons in a made-up task before the first iteration
    c.warm_start = config_dict.ConfigDict()
    c.warm_start.num_updates = 0
    c.warm_start.rows_per_update = 64
    c.warm_start.learning_rate = 3e-3
    c.warm_start.chain_lengths = (2, 3)
    c.warm_start.rare_rate = 0.0  # share of the lessons in solving that contain what is held out after all

    # --- evaluation
    c.eval = config_dict.ConfigDict()
    c.eval.every = 0  # iterations; 0: before and after only
    c.eval.num_samples = 8  # a question, for pass@k
    c.eval.temperature = 0.6
    c.eval.top_p = 0.95
    c.eval.k = (1, 8)
    c.eval.oracle = False  # `evaluate --refine` also refines what the verifier calls wrong, as a column of its own
    c.eval.texts_per_slot = 8  # that `evaluate` and `diagnose` write in one part; one that is killed is done again

    # --- diagnosis: which training questions no sample solves, and which critiques help there
    c.diagnosis = config_dict.ConfigDict()
    c.diagnosis.num_questions = 0  # of the training questions, the first ones; 0: all
    c.diagnosis.num_responses = 4  # a question fails persistently if none of them passes
    c.diagnosis.kinds = ("indicative", "indicative_gt", "execution", "cot")  # of critiques

    return c.lock()
