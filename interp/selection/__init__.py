"""From effect maps to the layers to edit: profiles, strategies, the selection and its evidence."""
