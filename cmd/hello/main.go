// Hello streams greetings from one process to another, whichever is started first.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"

	"casty"
)

// The key is all that both processes must agree on.
var greetings = casty.NewServiceKey[casty.StreamProducerMsg[string]]("greetings")

func main() {
	address := flag.String("address", "127.0.0.1:25530", "`host:port` of the producer")
	flag.Parse()
	switch ctx := context.Background(); flag.Arg(0) {
	case "produce":
		produce(ctx, must(casty.StartNode(casty.Config{Address: *address})))
	case "consume":
		consume(ctx, must(casty.StartNode(casty.Config{Seeds: []string{*address}})))
	default:
		log.Fatal("usage: hello [-address host:port] produce|consume")
	}
}

func produce(ctx context.Context, node *casty.System) {
	producer := must(casty.Spawn(node, "greeter", casty.Discoverable(greetings, casty.StreamProducer[string](2))))
	sink := must(casty.GetSink(ctx, node, producer))
	for n := range 5 {
		check(sink.Put(ctx, fmt.Sprint("hello ", n))) // blocks while the buffer, of 2, is full
		fmt.Println("put hello", n)
	}
	check(sink.Complete(ctx)) // blocks until the consumer's process holds everything
	check(node.Close())
}

func consume(ctx context.Context, node *casty.System) {
	for listing := range casty.Listings(ctx, node, greetings) { // now, and at each change
		if len(listing.Instances) > 0 {
			consumer := must(casty.Spawn(node, "reader", casty.StreamConsumer(listing.Instances[0].Ref)))
			for greeting, err := range must(casty.GetSource(ctx, node, consumer)).All(ctx) {
				check(err)
				fmt.Println("got", greeting)
			}
			check(node.Close()) // which ends the listings, too
		}
	}
}

func must[T any](value T, err error) T { check(err); return value }

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
