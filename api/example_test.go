package api_test

import (
	"context"
	"fmt"
	"log"

	"bulla/api"
)

// One event, and the receipt that proves it.
func ExampleClient_Append() {
	ctx := context.Background()
	c, err := api.Dial(ctx, "/run/bulla/sign.sock")
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close() // everything was answered
	receipt, err := c.Append(ctx, "", []byte(`{"type":"auth.login","actor":{"id":"alice"},"outcome":"success","id":"01JD3Z1W5V9T5Z8K6Q4X2Y7B3C"}`))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("durable and signed, at index", receipt.Index)
}

// Many events, in order, each exactly once, whatever happens to connection, appliance or device meanwhile. A producer that keeps last
// durably goes on after a crash of its own with Next: last + 1.
func ExampleClient_Stream() {
	ctx := context.Background()
	c, err := api.Dial(ctx, "/run/bulla/sign.sock")
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close() // everything was acknowledged
	last := int64(-1)
	s, err := c.Stream(api.StreamConfig{
		ID: "web-1", Next: last + 1,
		Acknowledged: func(first int64, r *api.Result) { last = first + int64(len(r.Items)) - 1 },
	})
	if err != nil {
		log.Fatal(err)
	}
	for i := range 1000 {
		if _, err := s.Send(ctx, fmt.Appendf(nil, `{"type":"page.view","data":{"page":%d}}`, i)); err != nil {
			log.Fatal(err)
		}
	}
	if err := s.Flush(ctx); err != nil {
		log.Fatal(err)
	}
	if err := s.Close(); err != nil {
		log.Fatal(err)
	}
}
