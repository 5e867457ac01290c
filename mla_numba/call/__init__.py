"""A call of the prolog: its arguments, plan, working memory and trace."""
