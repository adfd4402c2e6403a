package main

// A mistake can be planted with -bug: rules.go does something else then.
type mistake struct {
	name, what string
	breaks     string // the property that it breaks; empty: none
	why        string // why nothing breaks
	flags      string // for a small world that shows it, or in which it makes a difference without harm
}

// The worlds that show the mistakes are as small as they can be.
var mistakes = []mistake{
	{name: "norewind", what: "a Subscribe of the consumer that is served does not rewind", breaks: "stuck", flags: "-consumers 1"},
	{name: "stale", what: "one from before what is acknowledged is ignored", breaks: "stuck", flags: "-n 1 -cuts 0 -crashes 1"},
	{name: "strict", what: "it is refused", breaks: "refusal"},
	{name: "greedy", what: "the producer sends without demand", breaks: "demand"},
	{name: "careless", what: "it drops what it has sent", breaks: "kept"},
	{name: "hurry", what: "it stops when it has sent the end", breaks: "complete"},
	{name: "stranger", what: "it obeys the demand of a consumer that it does not serve", breaks: "demand"},
	{name: "strangerack", what: "it obeys the Received of one", breaks: "complete"},
	{name: "anycancel", what: "it obeys the cancel of one", breaks: "cancel", flags: "-cancels"},
	{name: "noreset", what: "a new consumer inherits the demand of the one before", breaks: "demand"},
	{name: "loyal", what: "an unreachable consumer keeps its place", breaks: "stuck", flags: "-losses 0 -cuts 0 -crashes 1 -silent"},
	{name: "namesake", what: "a consumer that has crashed is back under the same name", breaks: "demand", flags: "-consumers 1 -crashes 1"},
	{name: "gap", what: "a consumer takes what comes behind a gap", breaks: "order"},
	{name: "jump", what: "one that has taken something follows a Subscribed past what it needs", breaks: "order", flags: "-losses 0 -cuts 2"},
	{name: "back", what: "one that has taken nothing follows a late Subscribed back", breaks: "demand", flags: "-crashes 1"},
	{name: "lazy", what: "it does not subscribe again", breaks: "stuck", flags: "-consumers 1"},
	{name: "forget", what: "it says its last word once", breaks: "stuck", flags: "-consumers 1"},
	{name: "barecancel", what: "it cancels again, where it should subscribe first", breaks: "stuck", flags: "-consumers 1 -cancels"},
	{name: "stubborn", what: "it does not give up", breaks: "stuck", flags: "-losses 0 -crashes 1"},

	{name: "mutefrom", what: "a Subscribe does not acknowledge what is before From", why: "the next demand does", flags: "-n 1 -losses 0 -cuts 2"},
	{name: "doubting", what: "a Received past what has been sent since the last Subscribe does not acknowledge", why: "but what the consumer holds is sent again, and then acknowledged", flags: "-n 1 -losses 0 -cuts 2"},
	{name: "hasty", what: "another consumer is refused at once", why: "but its user has to try again, if the one before has stopped and the producer has yet to learn that", flags: "-n 1 -cuts 0"},
	{name: "mute", what: "it is not refused when the one that is served speaks", why: "but its user waits until the stream ends", flags: "-n 1 -cuts 0"},
	{name: "deaf", what: "a word of an unreachable consumer does not make it reachable", why: "but it loses its place without need", flags: "-n 1 -losses 0 -cuts 2"},
	{name: "eager", what: "a consumer takes elements before Subscribed", why: "before, it has demanded nothing that could come", flags: "-n 0 -consumers 1"},
	{name: "patient", what: "it does not subscribe at a gap", why: "it does at a tick, a heartbeat later", flags: "-n 1 -cuts 0"},
}

func find(name string) *mistake {
	for i := range mistakes {
		if mistakes[i].name == name {
			return &mistakes[i]
		}
	}
	return nil
}
