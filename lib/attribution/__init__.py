"""Which training data made this prediction? Document 4, and the base of document 1.

Everywhere ``tau [n, T]``: positive where training example i raises the output of target t, so that
the sum of ``tau[S, t]`` predicts the output of a network trained on S.

Map, file by file, in reading order. In each part the methods come first; then the studies, which
are what the notebooks compute, and the pictures, which are what they draw.

Ground truth and scores
    truth                what networks trained on known subsets really output
    subsets              subsets of training rows: exact sizes, sorted indices, indicators
    settings             data, networks, recipes and targets that methods are compared on
    settings_language    the same for language: a small transformer on pairs of sentences
    metrics              the linear datamodeling score, its ceiling and intervals; older scores
    cost                 floating-point operations of each method, by formula
    baselines            similarity of gradients and of representations, TracIn, chance
    valuation            Shapley values of training rows: nearest neighbours, sampled retraining

Influence (notebooks 41, 42)
    convex               exact influence and leave-one-out of ridge and logistic models
    refits               the retraining that it approximates
    influence            influence of networks: any target, any solver
    solvers              the inverse of a Hessian: conjugate gradients, LiSSA, Arnoldi
    kfac                 the same through the Kronecker-factored Fisher: K-FAC, EK-FAC
    influence_network    influence against retraining for a small convolutional network
    influence_studies    41: five experiments of influence against retraining
    influence_pictures   41: figures and tables
    pools                42: two-class problems drawn from digits
    mislabels            42: flipped labels, found by checking suspicious points first
    mismatch             42: a skewed subgroup, traced back from a wrong prediction
    poisoning            42: training images changed unseen
    debugging_pictures   42: figures and tables

Datamodels (notebooks 43, 44)
    datamodels           LASSO and ridge datamodels, empirical influence
    proximal             L1-penalised least squares of many targets at once
    brittleness          how few rows carry a prediction
    embedding            weights as vectors: clusters, components, two algorithms compared
    planted              a training set with secrets that datamodels are to find
    datamodel_studies    43: score by number of networks and by size of subsets
    datamodel_pictures   43: figures and tables
    application_studies  44: data support and counterfactuals
    application_pictures 44: their figures and tables
    planted_studies      44: leakage, clusters and comparison on the planted set
    planted_pictures     44: their figures and tables

TRAK (notebooks 45, 46)
    trak                 TRAK for any functional and any block of parameters
    surrogate            the linear model that it solves in place of a network
    traker               the same through the published software
    ground               truth, networks and cost that all methods share
    pareto               45: the score of every method against its cost
    trak_studies         45: choices of TRAK, images and text, what remains open
    trak_pictures        45: figures and tables
    pair_studies         46: image-text pairs that an alignment rests on
    retrieval            46: words, candidate sets and scores of retrieval
    fact_studies         46: which sentences taught a model a fact
    gallery_studies      46: images behind a prediction, and what retraining says
    trak_application_pictures  46: figures and tables

Concepts (document 1: notebooks 12, 13)
    prefixes             parameters before each of several layers, and projections in them
    concepts             TRAK with a probe's logit as the output
    eigenpairs           scores from the strongest eigenvectors of linear layers' gradients
    concept_eigenpairs   the same attribution of concepts through them, an order sooner
    concept_cases        networks and concepts that are attributed
    concept_retraining   what becomes of a concept without part of the data
    concept_studies      12, 13: numbers and rows
    concept_pictures     12: figures
    removal_pictures     13: figures

Features rather than data, the lecture's recap (notebook 47)
    feature_methods      captum's methods behind one call
    coalitions           exact Shapley values of a few features
    feature_axioms       the axioms of Shapley values, and stability
    feature_checks       randomised weights, deletion and insertion, agreement
    known_answer         images and networks of which one knows what a prediction rests on
    counterfactuals      the smallest change of an input that alters a decision
    tcav                 concept activation vectors and their test
    feature_subjects     the classifiers that are explained, and their concepts
    feature_studies      47: maps of every method, and what judges them
    feature_pictures     47: their figures and tables
    feature_contrasts    47: smallest changes, and concepts of a layer
    feature_contrast_pictures  47: their figures and tables

Import these modules by name; the package itself imports none of them. They lie in one folder and
not in one for each part because stored networks are found by the full names of the functions that
train them: a move would train all of them again.
"""
