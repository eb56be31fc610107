"""Where answers are computed: in several processes of one machine."""
