module casty

go 1.25
