"""Small jobs whose ranks are killed, stopped, cut off or made to raise at named stages of a reduction."""
