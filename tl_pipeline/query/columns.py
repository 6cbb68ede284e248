"""What the columns of the SQL catalogue mean: one text for each name.

A column has the same meaning wherever it stands; the few that have not are listed by
``view.column``.
"""

COLUMNS = {
    "accepted": "Whether the confidence reaches the threshold that was learned on "
    "held-out images.",
    "accuracy": "Share of images that are classified right, 0 to 1.",
    "after": "The new split, or the new label of what was relabelled; null if it left.",
    "against": "Evaluation of the candidate that held-out images rank highest.",
    "aliases": "Names that point to this version, such as champion.",
    "backbone": "The network, by its name for --backbone.",
    "batch_id": "The batch; ids sort by time.",
    "before": "The old split, or the old label of what was relabelled; null if it "
    "entered.",
    "best_encoder": "Name of the encoder of the best candidate; see encoders.",
    "best_encoder_key": "Key of that encoder.",
    "best_head": "Head of the best candidate, with its parameters.",
    "bottleneck": "What took most of the time: the network, decoding, reading or "
    "writing.",
    "by_image": "Evaluation of the same head on a split image by image; null if the "
    "split has no groups.",
    "bytes": "Size of the file in bytes, >= 0.",
    "cached": "Whether the artifact was there already.",
    "centroid": "Mean of the embeddings of these images, FLOAT[width].",
    "change": "entered, left, relabelled or moved (to another split).",
    "chosen": "Whether this configuration was chosen.",
    "cluster": "Number of the cluster of near duplicates, from 0 in each dataset.",
    "confidence": "Calibrated probability of the predicted label, 0 to 1.",
    "control": "Whether it is a control, such as an untrained network, and no "
    "candidate.",
    "correct": "Whether predicted is the label.",
    "dataset": "Name of the dataset.",
    "declared": "The split that the source declares; null if it declares none.",
    "declared_split": "The split that the source declares for the file that is left "
    "out; null if none.",
    "decode": "Seconds that all threads together decoded images, >= 0.",
    "detail": "What exactly is wrong with it.",
    "deviation": "Standard deviation of the accuracy over folds, 0 to 1; null without "
    "folds.",
    "distance_from_train": "Total variation distance between its class shares and "
    "those of train, 0 to 1; null for train.",
    "digest": "The digest of its statements, or of the names of all records.",
    "document": "The run record as JSON.",
    "duplicates": "Number of files with the very bytes of another, >= 0.",
    "elapsed": "Seconds from begin to end, >= 0.",
    "embedding": "The values of the network for this image, FLOAT[] as long as width "
    "in encoders; embeddings_of(encoder) gives them as FLOAT[width].",
    "encoder": "Name of the encoder, unique in the store; see encoders.",
    "encoder_key": "Key of the encoder: it stands for network, weights, layer and "
    "preprocessing; null where no record tells.",
    "entered": "Images that were not in the dataset the run before, >= 0.",
    "epoch": "Epoch of the training, from 1.",
    "evaluation": "Key of the evaluation: one encoder and head, scored.",
    "family": "Kind of head, such as logistic, without its parameters.",
    "file": "Name of the part file.",
    "finetuned": "Key of the fine-tuning.",
    "finished": "When the run ended, UTC.",
    "first_seen": "When it was refused first for this reason, UTC; null where an older "
    "version did not note it.",
    "folder": "Where the model lies.",
    "folds": "Number of folds, >= 1; 1 if validation images judged.",
    "folds_accuracy": "Accuracy on images that folds left out, 0 to 1; null without "
    "folds.",
    "forward": "Seconds that the network computed, >= 0.",
    "gain_by_transfer": "Accuracy on test minus that of the same head on the untrained "
    "network, -1 to 1; null without that control.",
    "group_id": "The group that must stay in one split; null if it has none.",
    "groups": "Number of groups, >= 0; null if the dataset has none.",
    "head": "The head, with its parameters.",
    "height": "Height of the image in pixels, > 0; null if it is no image.",
    "high": "Upper bound of the 95 % interval of value, in its unit.",
    "idle": "Seconds that the network waited, >= 0.",
    "image_id": "The image: the first 128 bits of the sha256 of its bytes, in hex.",
    "images": "Number of images, >= 0.",
    "in_set": "Whether the label is among the set_size labels.",
    "kept_declared_split": "The split that the source declares for kept_uri; null if "
    "none.",
    "kept_uri": "The file with the same bytes that is in images.",
    "label": "The class; null where images have no labels.",
    "labels": "Labels that may be right, the most probable first; the right one is "
    "missing at most at the error rate of the model.",
    "last_manifest": "Key of the manifest of the last run, be it refused.",
    "latest": "Whether it is of the latest finished run of its dataset.",
    "layer": "The layer that the embedding is taken from.",
    "learning_rate": "Learning rate at the end of the epoch, >= 0.",
    "log_loss": "Mean negative log likelihood of the label in nats, >= 0.",
    "loss": "Mean loss in nats, >= 0.",
    "lost": "Images on which the other alone is right, >= 0.",
    "low": "Lower bound of the 95 % interval of value, in its unit.",
    "manifest": "Key of the manifest, the table of images.",
    "member": "Evaluation of the head that is averaged.",
    "metric": "Name of the metric, such as accuracy.",
    "milliseconds": "What its encoders took for an image when they were last measured, "
    "> 0; null if they were not.",
    "model": "Key of the model.",
    "moved_in": "Images that came from another split since the run before, >= 0.",
    "name": "Name of the model: that of its dataset.",
    "near_id": "The other image of the pair.",
    "nearest_id": "The training or validation image that is most like it; null if "
    "nothing tells any more what the model learned from.",
    "nearest_similarity": "Cosine of the embeddings of the two, -1 to 1; mean over the "
    "encoders of the model.",
    "new_images": "Images that the model had not predicted before, >= 0.",
    "p": "How often chance alone brings such a difference, 0 to 1: McNemar's test, of "
    "groups Obuchowski's.",
    "p_holm": "p among all comparisons of the run, by Holm, 0 to 1.",
    "position": "Place of the label in probabilities, from 1.",
    "precision": "What the network computes in, such as bf16.",
    "predicted": "The label with the highest probability.",
    "predicted_at": "When it was predicted, UTC.",
    "probabilities": "Calibrated probability of each class, 0 to 1, sum 1; classes "
    "tells the order.",
    "quarantined": "Number of inputs that were refused, >= 0.",
    "read": "Seconds that all threads together read files, >= 0.",
    "reason": "Why, in a word or a sentence.",
    "registered": "When the run ended that registered it, UTC; null if no record "
    "tells.",
    "relabelled": "Images with another label than the run before, >= 0.",
    "removed": "Images that were in this split the run before and left the dataset, "
    ">= 0.",
    "role": "best, candidate or control.",
    "round": "Round of the search, from 0; later ones see more images.",
    "run_id": "The run; ids sort by time.",
    "search": "Key of the search.",
    "seconds": "How long it took, in seconds, >= 0.",
    "set_size": "Number of labels in the prediction set, >= 0.",
    "share": "Share of the images of the split, 0 to 1.",
    "similarity": "Cosine of the two embeddings, -1 to 1.",
    "split": "train, validation or test; unlabelled where images have no labels.",
    "stage": "The stage, such as embed.",
    "started": "When the run began, UTC.",
    "subject": "What the stage worked on.",
    "test_accuracy": "Accuracy on test, 0 to 1.",
    "times": "How often the head counts, >= 1.",
    "top": "The most probable labels, at most 5, with their calibrated probabilities.",
    "transfer": "Seconds to bring batches to the device and back, >= 0.",
    "trial": "Key of the trial.",
    "untrained": "Evaluation of the same head on the untrained network; null without "
    "that control.",
    "uri": "Path or URL of the input, as its source names it.",
    "validation_accuracy": "Accuracy on validation, 0 to 1; null where folds chose.",
    "value": "Value of the metric, in its unit; accuracy is 0 to 1.",
    "verdict": "tie if p_holm is at least 0.05, else worse.",
    "version": "Number of the version, from 1.",
    "weight": "What the image counts in training, >= 0; null is 1.",
    "weights": "Name of the weights.",
    "weights_sha256": "SHA-256 of the weights file; null of several.",
    "width": "Width of the image in pixels, > 0; null if it is no image.",
    "won": "Images on which this candidate alone is right, >= 0.",
    "write": "Seconds that embeddings were written, >= 0.",
    "batch_predictions.accepted": "Whether the confidence reaches the threshold of the "
    "model.",
    "batch_predictions.label": "The most probable class.",
    "batches.finished": "When the batch ended, UTC.",
    "batches.started": "When the batch began, UTC.",
    "built.name": "The table, view or macro; empty for the whole file.",
    "class_scores.images": "Images of the split that have the label, >= 0.",
    "class_scores.split": "test; folds or validation: images held out of heads.",
    "comparisons.bytes": "What its encoders store of an image, > 0; null if unknown.",
    "comparisons.images": "Held-out images that both scored, > 0.",
    "comparisons.metric": "The metric that compares candidates, --choose-by.",
    "comparisons.value": "Its score minus that of against, in the unit of the metric.",
    "doubled_embeddings.row": "Row in the part file, from 0.",
    "encoders.label": "Name of the encoder, which two may share.",
    "encoders.width": "Number of values of an embedding, > 0; null of several.",
    "metrics.role": "best, candidate or control; best is of the latest run only.",
    "metrics.split": "test; folds or validation: images held out of heads; train: at "
    "most 10,000 of the images that the head learned from.",
    "metrics_history.split": "test; folds or validation: images held out of heads; "
    "train: at most 10,000 of the images that the head learned from.",
    "models.head": "The head, with its parameters.",
    "models.run_id": "The run that registered it first; null if no record tells.",
    "near_duplicates.similarity": "How alike the two are, -1 to 1: cosine of the "
    "whitened embeddings.",
    "predictions.role": "best, candidate or control; best is of the latest run only.",
    "predictions.split": "test; folds (train and validation images, each scored by a "
    "head that did not learn from it) or validation.",
    "predictions_history.split": "test; folds (train and validation images, each "
    "scored by a head that did not learn from it) or validation.",
    "runs.images": "Number of images in the manifest, >= 0.",
    "searches.images": "Number of images that scored it, >= 0.",
    "splits.share": "Share of all images, 0 to 1.",
    "training_curves.accuracy": "Share of images that are classified right, 0 to 1; of "
    "train, of augmented ones.",
}
