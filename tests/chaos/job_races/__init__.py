"""Jobs that end while they are followed, read, and their server is killed.

    $ python -m tests.chaos.job_races --store sqlite --races 1000
    1000 races, 4000 followers, 40 kills: every state was that of the job

In a wave of jobs, each writes a text, reports progress, perhaps tries again, and completes, fails
or is cancelled at a random moment. ``follow_job`` (and ``useJob``, with ``--browser``) begins
before, at and after that moment, and the server is killed and started again meanwhile. Afterwards,
what followers, records and lists say is compared with what each job has done.
``tests/chaos/test_job_races.py`` runs some.
"""
